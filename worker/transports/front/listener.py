"""The listening socket and the Hypercorn server on it.

We open the socket ourselves because its options are inherited by every accepted connection, and only they bound what
the kernel buffers for a slow reader, cut a stalled one, and find a peer that vanished: ASGI has no way to do any of it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import hypercorn.asyncio.run as hypercorn_run
import hypercorn.protocol.ws_stream as ws_stream
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config

from worker.config import Settings
from worker.errors import ConfigError
from worker.transports.front import strict

BACKLOG = 2048
FILES_BESIDE_CONNECTIONS = 64
"""Files that the worker has open besides one per connection, rounded up."""

FILES_TOLD_EVERY_S = 60.0
LAST_WORD_S = 3.0
"""How much longer than a stalled client its socket lives: it may still read why it was given up."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 15, 5, 3

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
        ("TCP_USER_TIMEOUT", int((settings.stall_timeout_s + LAST_WORD_S) * 1000)),
    ):
        if hasattr(socket, name):
            listening.setsockopt(tcp, getattr(socket, name), value)


def files_needed(settings: Settings) -> int:
    """Return how many files the process may have to hold open."""
    return settings.connections_max + FILES_BESIDE_CONNECTIONS


def fit_open_files(settings: Settings) -> Settings:
    """Raise the soft limit of open files to what the connections need, as far as the hard limit allows.

    Return the settings, with fewer connections if there are not files for all. Raises ConfigError if there are none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_needed(settings)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    room = allowed - FILES_BESIDE_CONNECTIONS
    if room < 1:
        raise ConfigError(
            f"Only {allowed} files may be open here, of {wanted} that are needed. "
            f"Allow more: ulimit -n {wanted}, or LimitNOFILE={wanted} in a systemd unit."
        )
    if room < settings.connections_max:
        logger.warning(
            "files_scarce", extra={"files_allowed": allowed, "files_needed": wanted, "connections_max": room}
        )
    return replace(settings, connections_max=min(room, settings.connections_max))


async def serve(
    app: Any, listening: socket.socket, settings: Settings, shutdown_trigger: Callable[[], Awaitable[None]]
) -> None:
    """Serve an ASGI app on a listening socket until `shutdown_trigger` returns. Takes the socket over."""
    _refuse_deflate()
    strict.install()
    config = Config()
    config.bind = [f"fd://{listening.detach()}"]
    config.backlog = BACKLOG
    # HTTP/2 belongs to a proxy: Hypercorn's closes all streams of a connection on one late frame.
    config.alpn_protocols = ["http/1.1"]
    config.accesslog = None
    server_logger = logging.getLogger("worker.hypercorn")
    server_logger.setLevel(logging.WARNING)
    config.errorlog = server_logger
    config.include_server_header = False
    config.websocket_max_message_size = settings.frame_bytes_max
    config.websocket_ping_interval = 20.0
    # Our own drain has already let every stream end when the trigger returns.
    config.graceful_timeout = 0.5
    config.shutdown_timeout = 2.0
    cut_connections = _remember_connections()
    asyncio.get_running_loop().set_exception_handler(_Reporter())

    async def shut_down() -> None:
        await shutdown_trigger()
        asyncio.get_running_loop().call_later(config.graceful_timeout, cut_connections)

    await hypercorn_serve(app, config, shutdown_trigger=shut_down)


class _Reporter:
    """Lets asyncio report what goes wrong in a callback, but for two things.

    Streams of Python 3.11 ask the task of a connection for its exception, which raises if it was cancelled at shutdown.
    And when files run out, asyncio reports that for each connection that could be waiting, thousands of times per
    second: it is told now and then.
    """

    def __init__(self) -> None:
        self._told_s = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            if loop.time() - self._told_s > FILES_TOLD_EVERY_S:
                self._told_s = loop.time()
                logger.error("No connection can be accepted now: %s", error.strerror)
        elif not isinstance(error, asyncio.CancelledError):
            loop.default_exception_handler(context)


def _remember_connections() -> Callable[[], None]:
    """Return a function that cuts all connections which are still open.

    On Python 3.12 and later Hypercorn 0.18 waits at shutdown for every connection, also for one that stopped in the
    middle of a request or does not read (hypercorn issue 308), and offers no way to cut it.
    """
    writers: WeakSet[asyncio.StreamWriter] = WeakSet()

    class Remembered(TCPServer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            writers.add(self.writer)

    hypercorn_run.TCPServer = Remembered  # type: ignore[assignment, attr-defined]  # not exported

    def cut() -> None:
        for writer in tuple(writers):
            writer.transport.abort()

    return cut


def _refuse_deflate() -> None:
    """Answer no to permessage-deflate: per token frame it doubles the CPU and costs 90 KiB per connection.

    Hypercorn 0.18 has no switch (hypercorn issue 307), so the negotiation is replaced; the dependency is pinned to 0.18
    and a test looks at the handshake.
    """
    ws_stream.server_extensions_handshake = lambda *_: None  # type: ignore[attr-defined]  # not exported, see above
