"""The listening socket, and how many files the process may have open.

We open the socket ourselves because every accepted connection inherits its options, and only they bound what the
kernel buffers for a slow reader, cut a stalled one, and detect a peer that vanished: ASGI cannot do any of it.
"""

from __future__ import annotations

import logging
import resource
import socket
from contextlib import ExitStack
from dataclasses import replace

from worker.config import Settings
from worker.errors import ConfigError

BACKLOG = 2048
"""How many connections the kernel keeps waiting to be accepted."""

ACCEPTS_PER_TURN = 2
"""How many connections are accepted before the event loop turns.

Those that must go for them are closed only then. And where no file is left, asyncio tries so often in vain each second.
"""

FILES_BESIDE_CONNECTIONS = 64
"""Open files of the worker besides one per connection, rounded up. 16 are for starting an engine or a preparer again,
and as many for connections that were just accepted and those that are being cut for them."""

ROOM_MIN = 2
"""One connection that has a key, and one that may be about to show it."""

STALLED_EXTRA_S = 3.0
"""How much longer than a stalled connection its socket lives, so that the client may still read the close code."""

KEEPALIVE_IDLE_S = 15
"""How long a connection is silent before the kernel probes whether the peer is still there."""

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3

logger = logging.getLogger(__name__)


def open_socket(settings: Settings) -> socket.socket:
    """Bind and return the listening socket. Raises ConfigError if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with ExitStack() as on_error:
            listening = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _set_inherited_options(listening, settings)
            listening.bind((settings.host, settings.port))
            listening.listen(BACKLOG)
            on_error.pop_all()
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror or error}. "
            "Choose another with --host and --port; --port 0 takes a free one."
        ) from error
    return listening


def _set_inherited_options(listening: socket.socket, settings: Settings) -> None:
    tcp = socket.IPPROTO_TCP
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(tcp, socket.TCP_NODELAY, 1)
    # Linux has all of these, other systems some.
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", int((settings.stall_timeout_s + STALLED_EXTRA_S) * 1000)),
    ):
        if hasattr(socket, name):
            listening.setsockopt(tcp, getattr(socket, name), value)


def files_needed(settings: Settings) -> int:
    """Return how many files the process may have to hold open."""
    return settings.connections_max + settings.keyless_room + FILES_BESIDE_CONNECTIONS


def fit_open_files(settings: Settings) -> Settings:
    """Raise the soft limit of open files to the number that the connections need, as far as the hard limit allows.

    Return the settings, with fewer connections if the files do not suffice for all: at most a quarter of them without
    a key. Raises ConfigError if the files suffice for none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_needed(settings)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return settings
    room = allowed - FILES_BESIDE_CONNECTIONS
    if room < ROOM_MIN:
        raise ConfigError(
            f"Only {allowed} files may be open here, of {wanted} that are needed. "
            f"Allow more: ulimit -n {wanted}, or LimitNOFILE={wanted} in a systemd unit."
        )
    keyless_max = min(settings.keyless_room, max(room // 4, 1))
    fitted = replace(
        settings,
        connections_max=min(room - keyless_max, settings.connections_max),
        connections_keyless_max=keyless_max,
    )
    facts = {"connections_max": fitted.connections_max, "connections_keyless_max": keyless_max}
    logger.warning("files_scarce", extra={"files_allowed": allowed, "files_needed": wanted, **facts})
    return fitted
