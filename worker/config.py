"""Settings: one frozen object, from flags, `JOBWIRE_*` environment and a TOML file, in that order of precedence."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set. The unit is the last word of a name; bytes, tokens, jobs and counts are integers."""

    # Where to listen.
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str = field(default="", repr=False)
    hosts_allowed: tuple[str, ...] = ()
    origins_allowed: tuple[str, ...] = ()
    # What to run.
    engine: str = "auto"
    model: str | None = None
    slots: int = 64
    context_tokens: int = 0
    threads: int = 0
    chat_template: str | None = None
    # How to schedule.
    prefill_tokens_per_step: int = 256
    queue_jobs_max: int = 1024
    queue_tokens_max: int = 2_000_000
    jobs_per_principal_max: int = 1024
    # What a job may ask for.
    max_tokens_default: int = 512
    max_tokens_max: int = 32_768
    prompt_bytes_max: int = 1_000_000
    choices_max: int = 16
    deadline_default_ms: int = 0
    # How long things are kept.
    retention_s: float = 300.0
    retention_bytes_max: int = 256 * 1024 * 1024
    orphan_ttl_s: float = 60.0
    # Connections.
    frame_bytes_max: int = 1024 * 1024
    connections_max: int = 4096
    subscriptions_per_connection_max: int = 2048
    heartbeat_s: float = 15.0
    stall_timeout_s: float = 30.0
    outbox_replies_max: int = 1024
    send_buffer_bytes: int = 64 * 1024
    # The engine process.
    engine_stall_timeout_s: float = 60.0
    engine_start_timeout_s: float = 600.0
    engine_restart_backoff_s: float = 0.5
    engine_restart_backoff_max_s: float = 30.0
    engine_deaths_per_job_max: int = 3
    drain_timeout_s: float = 30.0
    # Narrating to an operator and to a fleet.
    log_level: str = "info"
    worker_id: str = ""
    queen_url: str = ""
    heartbeat_post_s: float = 30.0
