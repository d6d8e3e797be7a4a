"""The server on the listening socket: begins connections, and ends them at shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from worker.transports.front.doorway import Doorway
from worker.transports.front.house import House
from worker.transports.front.hypercorn import patches
from worker.transports.front.hypercorn.exceptions import ExceptionReporter
from worker.transports.front.hypercorn.server import HttpConnection
from worker.transports.front.sockets import ACCEPTS_PER_TURN, BACKLOG
from worker.transports.front.stream import Stream
from worker.transports.front.websockets.sessions import Table
from worker.transports.gateway import Gateway
from worker.transports.room import Peer

GRACEFUL_TIMEOUT_S = 0.5
"""How long connections may take to end by themselves at shutdown. Our own drain has ended every stream before."""


async def serve(
    app: Any,
    table: Table,
    gateway: Gateway,
    listening: socket.socket,
    shutdown_trigger: Callable[[], Awaitable[None]],
) -> None:
    """Serve an ASGI app and a table of WebSockets on a listening socket, until `shutdown_trigger` returns."""
    patches.install()
    loop, config, context = asyncio.get_running_loop(), _config(), WorkerContext(None)
    loop.set_exception_handler(ExceptionReporter())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as tasks:

            def serve_http(peer: Peer, stream: Stream, on_idle: Callable[[], None]) -> HttpConnection:
                return HttpConnection(app, config, context, tasks.create_task, peer, stream, house.overtime, on_idle)

            house = House(gateway, serve_http)
            server = await loop.create_server(lambda: Doorway(house, table), sock=listening, backlog=ACCEPTS_PER_TURN)
            # The same socket: asyncio has the kernel keep no more connections waiting than it accepts in one turn.
            listening.listen(BACKLOG)
            await shutdown_trigger()
            server.close()
            # Connections of Hypercorn that wait for a request end at once.
            await context.terminated.set()
            await house.wait_empty(GRACEFUL_TIMEOUT_S)
            house.cut()
            limit.reschedule(loop.time() + GRACEFUL_TIMEOUT_S)


def _config() -> Config:
    server_logger = logging.getLogger("worker.hypercorn")
    server_logger.setLevel(logging.WARNING)
    config = Config()
    config.accesslog = None
    config.errorlog = server_logger
    config.include_server_header = False
    return config
