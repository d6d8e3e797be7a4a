"""The settings themselves. To add one, add a field here: flag, variable, TOML key, help and checks follow from it.

A field is `name: Annotated[type, Meta(range, description)] = default`. The unit is the last word of a name, or the one
before `max`, `default` or `per_...`. Bytes, tokens, jobs and counts are integers. Where 0 means "none" or "automatic",
the description mentions it. Floats have an upper bound, so that infinity is refused.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from worker.config.listening import DAY_S, GIB, MIB, Listening
from worker.errors import ConfigError

GROUPS = {
    "host": "Where to listen, and for whom",
    "frame_bytes_max": "Connections",
    "engine": "What to run",
    "cache": "ExLlamaV2 alone",
    "prefill_tokens_per_step": "How to schedule",
    "max_tokens_default": "What a job may ask for",
    "retention_s": "How long things are kept",
    "prepare_timeout_s": "Reading prompts",
    "engine_stall_timeout_s": "The engine process",
    "log_level": "Operator and fleet",
}
"""The field that begins a group, and the group's title, in `--help` and in the table of settings."""

EXLLAMAV2_ALONE = (
    "cache", "cache_tokens", "slice_tokens", "chunk_tokens", "gpu_split", "tensor_parallel", "draft_model",
    "draft_tokens", "ngram", "loras",
)  # fmt: skip
"""Settings that other engines cannot use: they refuse to start with one that differs from its default."""


PIECE_TOKENS_MAX = 63
"""Up to so many tokens of a sequence llama.cpp computes alike on a CPU, however they are cut, to the last bit. From 64
on it computes them in tiles."""

KEY_CHARS_MIN = 16
"""A shorter API key can be guessed."""

KEY_ADVICE = f"Choose one of at least {KEY_CHARS_MIN} characters: `openssl rand -hex 16` prints one."


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`. Names other than localhost count as reachable from outside."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, kw_only=True)
class Settings(Listening):
    """All settings. Raises ConfigError when settings contradict each other or would be unsafe.

    Ranges are checked where text becomes a value, in `sources`; here are only the rules that span several settings.
    """

    # ---- What to run ----
    engine: Annotated[
        str, Meta(min_length=1, description="Engine that runs the model. auto chooses the best one for the model.")
    ] = "auto"
    model: Annotated[
        str | None,
        Meta(description="Model file or folder. Without one, the small bundled model runs.", extra={"metavar": "PATH"}),
    ] = None
    slots: Annotated[int, Meta(ge=1, le=4096, description="Sequences that share one engine step.")] = 64
    context_tokens: Annotated[
        int, Meta(ge=0, le=1 << 24, description="Context of one sequence, prompt and output. 0 uses the model's.")
    ] = 0
    threads: Annotated[int, Meta(ge=0, le=1024, description="Compute threads. 0 lets the engine choose.")] = 0
    chat_template: Annotated[
        str | None,
        Meta(
            description="File with a Jinja chat template to use instead of the model's own.", extra={"metavar": "PATH"}
        ),
    ] = None
    device: Annotated[
        int, Meta(ge=0, le=1023, description="Index of the accelerator to use. CPU engines ignore it.")
    ] = 0

    # ---- ExLlamaV2 alone ----
    cache: Annotated[
        Literal["fp16", "q8", "q6", "q4"], Meta(description="Precision of the KV cache. q4 holds 3.5 times as much.")
    ] = "fp16"
    cache_tokens: Annotated[
        int,
        Meta(ge=0, le=1 << 30, description="Size of the KV cache. 0 uses the slots' need, as far as memory allows."),
    ] = 0
    slice_tokens: Annotated[
        int,
        Meta(ge=0, le=1 << 24, description="Output tokens that cache is reserved for at a time. 0 reserves all."),
    ] = 1024
    chunk_tokens: Annotated[
        int,
        Meta(
            ge=256,
            le=1 << 16,
            multiple_of=256,
            description="Most prompt tokens of one forward pass.",
            extra={"allowed": "a multiple of 256, at least 256 and at most 65536"},
        ),
    ] = 512
    gpu_split: Annotated[
        str,
        Meta(
            pattern=r"^(auto|\d+(\.\d+)?(,\d+(\.\d+)?)*)?$",
            description="Spread the model: auto, or GiB of weights for each GPU. Without it one GPU is used.",
            extra={"allowed": "auto, or GiB for each GPU, as in 20,24", "metavar": "GIB,GIB"},
        ),
    ] = ""
    tensor_parallel: Annotated[bool, Meta(description="Split every layer over the GPUs. Needs flash-attn.")] = False
    draft_model: Annotated[
        str | None,
        Meta(description="Folder of a small model that guesses tokens ahead.", extra={"metavar": "PATH"}),
    ] = None
    draft_tokens: Annotated[int, Meta(ge=1, le=16, description="Tokens that are guessed ahead.")] = 4
    ngram: Annotated[bool, Meta(description="Guess tokens ahead from the text so far.")] = False
    loras: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[^=,]+(=-?\d+(\.\d+)?)?$")], ...],
        Meta(
            description="Folders of LoRA adapters for all jobs. PATH=0.5 scales one.",
            extra={"allowed": "folders separated by commas, each PATH or PATH=SCALE"},
        ),
    ] = ()

    # ---- How to schedule ----
    prefill_tokens_per_step: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Prompt tokens computed per step. Fewer keep running jobs smoother.")
    ] = 256
    prefill_piece_tokens_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 20,
            description="Tokens of one prompt that llama.cpp computes at a time. With more than 63, or 0 (any number), "
            "a seed no longer gives the same text beside other jobs.",
        ),
    ] = PIECE_TOKENS_MAX
    queue_jobs_max: Annotated[int, Meta(ge=1, le=1 << 20, description="Waiting jobs, over all clients.")] = 1024
    queue_tokens_max: Annotated[
        int, Meta(ge=1, le=1 << 40, description="Tokens that all waiting jobs together may need.")
    ] = 2_000_000
    jobs_per_account_max: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Live jobs of one key and all of its users, queued and running.")
    ] = 1024
    jobs_per_minute_max: Annotated[
        int, Meta(ge=0, le=1 << 40, description="Jobs that one key may create per minute. 0 is no limit.")
    ] = 0
    tokens_per_minute_max: Annotated[
        int,
        Meta(
            ge=0, le=1 << 40, description="Tokens, of prompt and output, that one key gets per minute. 0 is no limit."
        ),
    ] = 0
    priority_ageing_s: Annotated[
        float, Meta(ge=0.001, le=DAY_S, description="Wait that is worth one level of priority, so that no job starves.")
    ] = 30.0
    queue_skips_max: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Jobs that may pass one that does not fit yet. Then all wait for it.")
    ] = 16
    queue_news_ms: Annotated[
        int, Meta(ge=0, le=60_000, description="Least time between two reports of queue positions.")
    ] = 250

    # ---- What a job may ask for ----
    max_tokens_default: Annotated[
        int, Meta(ge=1, le=1 << 24, description="Output tokens of a job that sets no `max_tokens`.")
    ] = 512
    max_tokens_max: Annotated[int, Meta(ge=1, le=1 << 24, description="Output tokens that a job may ask for.")] = 32_768
    prompt_bytes_max: Annotated[int, Meta(ge=1, le=GIB, description="Size of a prompt.")] = 1_000_000
    messages_max: Annotated[int, Meta(ge=1, le=1 << 20, description="Messages of a conversation.")] = 4096
    choices_max: Annotated[int, Meta(ge=1, le=4096, description="Choices (n) of one job.")] = 16
    deadline_default_ms: Annotated[
        int, Meta(ge=0, le=DAY_S * 1000, description="Deadline of a job that sets none, from its creation. 0 is none.")
    ] = 0

    # ---- How long things are kept ----
    retention_s: Annotated[float, Meta(ge=0, le=30 * DAY_S, description="How long an ended job can still be read.")] = (
        300.0
    )
    retention_bytes_max: Annotated[
        int, Meta(ge=0, le=1 << 40, description="Memory for the logs of ended jobs. The oldest go first.")
    ] = 256 * MIB
    orphan_ttl_s: Annotated[
        float, Meta(ge=0, le=30 * DAY_S, description="Time after which a job that nobody watches is cancelled.")
    ] = 60.0

    # ---- Reading prompts ----
    prepare_timeout_s: Annotated[
        float,
        Meta(ge=0.01, le=3600, description="Time to read one prompt and its response format. Then the job fails."),
    ] = 10.0
    prepare_memory_bytes_max: Annotated[
        int, Meta(ge=128 * MIB, le=1 << 40, description="Memory to read one prompt and its response format.")
    ] = 256 * MIB
    form_compile_ms_max: Annotated[
        int, Meta(ge=1, le=3_600_000, description="CPU time to compile a response format. Slower ones are refused.")
    ] = 200
    form_mask_ms_max: Annotated[
        int, Meta(ge=1, le=60_000, description="CPU time to find the tokens that a response format allows next.")
    ] = 20

    # ---- The engine process ----
    engine_stall_timeout_s: Annotated[
        float,
        Meta(gt=0, le=DAY_S, description="Time after which an engine that has work but makes no step is restarted."),
    ] = 60.0
    engine_start_timeout_s: Annotated[
        float, Meta(gt=0, le=DAY_S, description="Time without progress after which loading a model has failed.")
    ] = 600.0
    engine_restart_backoff_s: Annotated[
        float, Meta(ge=0, le=3600, description="Pause before the first restart of a dead engine. It doubles each time.")
    ] = 0.5
    engine_restart_backoff_max_s: Annotated[
        float, Meta(ge=0, le=3600, description="Longest pause before a restart.")
    ] = 30.0
    engine_deaths_per_job_max: Annotated[
        int, Meta(ge=0, le=1000, description="Engine deaths in a row that a job survives; the next one fails it.")
    ] = 3
    drain_timeout_s: Annotated[
        float, Meta(ge=0, le=DAY_S, description="Time that running jobs have to finish after a signal to stop.")
    ] = 30.0

    # ---- Operator and fleet ----
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe messages that are logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "pretty", "json"],
        Meta(description="Logs for people or for machines. auto is pretty on a terminal, otherwise json."),
    ] = "auto"
    log_refusals_per_minute_max: Annotated[
        int,
        Meta(
            ge=0, le=1 << 20, description="Lines per minute about refusals of one code. Metrics count all. 0 logs all."
        ),
    ] = 60
    log_prompts: Annotated[bool, Meta(description="Log prompts and answers.")] = False
    metrics_open: Annotated[bool, Meta(description="Answer /metrics without a key, even if there are keys.")] = False
    otel_endpoint: Annotated[
        str,
        Meta(
            pattern=r"^(https?://\S+)?$",
            description="Collector that spans are sent to, as OTLP over HTTP. Needs the extra `otel`.",
            extra={"metavar": "URL", "allowed": "a URL that begins with http:// or https://"},
        ),
    ] = ""
    worker_id: Annotated[str, Meta(description="Name of this worker in a fleet and in heartbeats.")] = ""
    queen_url: Annotated[
        str,
        Meta(
            pattern=r"^(https?://\S+)?$",
            description="Coordinator that heartbeats are posted to. Without one there are none.",
            extra={"metavar": "URL", "allowed": "a URL that begins with http:// or https://"},
        ),
    ] = ""
    heartbeat_post_s: Annotated[float, Meta(ge=0.01, le=DAY_S, description="Time between heartbeats.")] = 30.0
    local_mode: Annotated[bool, Meta(description="Post no heartbeats, even if a coordinator is set.")] = False

    @property
    def exllamav2(self) -> dict[str, str]:
        """The settings of ExLlamaV2 alone that differ from their defaults, as text."""
        given = {name: getattr(self, name) for name in EXLLAMAV2_ALONE}
        return {name: _text(value) for name, value in given.items() if value != getattr(Settings, name)}

    @property
    def has_short_key(self) -> bool:
        """Whether there is an `api_key` that can be guessed."""
        return 0 < len(self.api_key) < KEY_CHARS_MIN

    def __post_init__(self) -> None:
        self._check_exllamav2()
        # Reading them finds what is wrong with them.
        _ = self.networks_trusted
        if not self.api_key and self.keys_file is None and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} can be reached from other machines, and no api_key protects it. Set JOBWIRE_API_KEY "
                "to a secret of your own, name a keys_file, or listen on 127.0.0.1."
            )
        if self.has_short_key and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} can be reached from other machines, and api_key is so short that it can be guessed. "
                f"{KEY_ADVICE}"
            )
        if self.max_tokens_default > self.max_tokens_max:
            raise ConfigError(
                f"max_tokens_default is {self.max_tokens_default}, but must be at most max_tokens_max, which is "
                f"{self.max_tokens_max}."
            )
        if self.engine_restart_backoff_s > self.engine_restart_backoff_max_s:
            raise ConfigError(
                f"engine_restart_backoff_s is {self.engine_restart_backoff_s}, but must be at most "
                f"engine_restart_backoff_max_s, which is {self.engine_restart_backoff_max_s}."
            )

    def _check_exllamav2(self) -> None:
        if self.ngram and self.draft_model:
            raise ConfigError("ngram and draft_model both guess tokens ahead. Choose one.")
        given = self.exllamav2
        runs = self.engine if self.model or self.engine != "auto" else "numpy, which runs the bundled model"
        if given and self.engine != "exllamav2" and runs != "auto":
            what, them = ("setting", "it") if len(given) == 1 else ("settings", "them")
            raise ConfigError(
                f"Only ExLlamaV2 has the {what} {', '.join(given)}, but the engine is {runs}. "
                f"Leave {them} out, or choose another engine."
            )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
