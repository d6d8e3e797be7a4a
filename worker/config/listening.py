"""The settings of the listening side: where, for whom, and how much a connection may cost. See `settings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from msgspec import Meta

from worker.errors import ConfigError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DAY_S = 86_400
KEYLESS_MIN = 16
"""Connections without a key that are always allowed: each newcomer begins as one."""

ORIGIN = r"^[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9a-fA-F:.]+\]|[^\s/*?#@\[\]:]+)(:[0-9]{1,5})?$(?!\n)"
"""An origin of web pages. No path, and no `*`: any page in the world could use the worker then."""

PREFIX_CHARS_MAX = 200
PATH_PREFIX = r"^(?!/(v1|docs|playground|health|metrics)(/|$))(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)*/?$(?!\n)"
"""The beginning of the path below which a proxy serves the worker. One that begins as a path of the worker's own does
would be ambiguous; `//` would begin the name of another host."""


@dataclass(frozen=True, kw_only=True)
class Listening:
    """The part of the settings that is about callers and their connections."""

    # ---- Where to listen, and for whom ----
    host: Annotated[
        str, Meta(min_length=1, description="Address to listen on. Anything but loopback needs an API key.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port. 0 chooses any free one.")] = 8080
    api_key: Annotated[
        str,
        Meta(
            pattern=r"^[!-~]*$",
            description="Key that every request must carry. Better set by variable or file than by flag.",
            extra={"allowed": "printable ASCII without spaces"},
        ),
    ] = field(default="", repr=False)
    keys_file: Annotated[
        str | None,
        Meta(
            description="TOML file with keys, each with limits of its own. Changes apply within seconds.",
            extra={"metavar": "PATH"},
        ),
    ] = None
    token_ttl_max_s: Annotated[int, Meta(ge=1, le=30 * DAY_S, description="Longest life of a token for a browser.")] = (
        DAY_S
    )
    hosts_allowed: Annotated[
        tuple[str, ...],
        Meta(description="Host names that requests may address, besides addresses and the one listened on."),
    ] = ()
    origins_allowed: Annotated[
        tuple[Annotated[str, Meta(pattern=ORIGIN)], ...],
        Meta(
            description="Origins of web pages that may connect, besides the worker's own.",
            extra={"allowed": "a list of origins like https://page.example, without paths, and without *"},
        ),
    ] = ()
    path_prefix: Annotated[
        str,
        Meta(
            pattern=PATH_PREFIX,
            max_length=PREFIX_CHARS_MAX,
            description="Path below which a proxy serves the worker, like /llm. Requests may come with it or without.",
            extra={
                "metavar": "PATH",
                "allowed": "a path like /llm, of letters, digits and ._~-, that does not begin with /v1, /docs, "
                "/playground, /health or /metrics",
            },
        ),
    ] = ""
    proxies_trusted: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses and networks of proxies whose header X-Forwarded-Prefix is used.",
            extra={"allowed": "a list of addresses and networks like 10.0.0.0/8"},
        ),
    ] = ("127.0.0.1", "::1")

    # ---- Connections ----
    frame_bytes_max: Annotated[
        int,
        Meta(
            ge=4096,
            le=GIB,
            description="Most bytes of a message or request body from a client. Token frames are merged up to it.",
        ),
    ] = MIB
    json_members_max: Annotated[
        int,
        Meta(ge=64, le=1 << 24, description="Fields and elements in a message or request body, at all depths."),
    ] = 20_000
    connections_max: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Open TCP connections of callers with a key, or of all without keys.")
    ] = 4096
    connections_keyless_max: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="Open TCP connections that have shown no key. 0 is an eighth, at least 16."),
    ] = 0
    control_frames_per_s_max: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 20,
            description="Pings of one WebSocket, and its control frames, empty frames and tiny fragments.",
        ),
    ] = 100
    subscriptions_per_connection_max: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Jobs that one WebSocket may watch at a time.")
    ] = 2048
    window_frames_max: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Largest window that a client may set: frames of a job in flight.")
    ] = 1024
    coalesce_ms_max: Annotated[
        int, Meta(ge=0, le=60_000, description="Longest pause between token frames of a job that a client may set.")
    ] = 500
    auth_timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Time that a WebSocket without a key has to send one.")
    ] = 10.0
    heartbeat_s: Annotated[
        float, Meta(gt=0, le=3600, description="Silence after which a stream sends a sign of life.")
    ] = 15.0
    stall_timeout_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Time after which a client that reads nothing is cut off. Its jobs go on."),
    ] = 30.0
    outbox_replies_max: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Replies waiting for one WebSocket client that does not read.")
    ] = 1024
    send_buffer_bytes: Annotated[
        int, Meta(ge=4096, le=64 * MIB, description="Kernel send buffer of one connection.")
    ] = 64 * KIB

    @property
    def keyless_room(self) -> int:
        """How many connections may be open that have shown no key."""
        return self.connections_keyless_max or max(self.connections_max // 8, KEYLESS_MIN)

    @property
    def networks_trusted(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`proxies_trusted` as networks. Raises ConfigError."""
        return tuple(map(_network, self.proxies_trusted))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(
            f"proxies_trusted has {text!r}, but must be a list of addresses and networks like 10.0.0.0/8: {error}."
        ) from None
