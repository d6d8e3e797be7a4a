"""The Hypercorn server on the listening socket: its configuration, and its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.asyncio import serve as hypercorn_serve

from worker.config import Settings
from worker.transports.front.hypercorn import patches
from worker.transports.front.hypercorn.connections import RoomConfig
from worker.transports.front.hypercorn.exceptions import ExceptionReporter
from worker.transports.front.sockets import ACCEPTS_PER_TURN, BACKLOG
from worker.transports.room import Room

PING_EVERY_S = 20.0
"""How often a WebSocket is pinged, so that proxies keep it open."""

GRACEFUL_TIMEOUT_S = 0.5
"""How long Hypercorn waits for connections at shutdown. Our own drain has ended every stream before."""

SHUTDOWN_TIMEOUT_S = 2.0


async def serve(
    app: Any, listening: socket.socket, settings: Settings, room: Room, shutdown_trigger: Callable[[], Awaitable[None]]
) -> None:
    """Serve an ASGI app on a listening socket, which it then owns, until `shutdown_trigger` returns.

    `room` counts the connections.
    """
    patches.install()
    # The same socket: asyncio has the kernel keep no more connections waiting than it accepts in one turn.
    waiting = listening.dup()
    config = _config(listening, settings, room)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(ExceptionReporter())

    async def shut_down() -> None:
        with waiting:
            waiting.listen(BACKLOG)
        await shutdown_trigger()
        loop.call_later(config.graceful_timeout, config.cut_connections)

    try:
        await hypercorn_serve(app, config, shutdown_trigger=shut_down)
    finally:
        waiting.close()


def _config(listening: socket.socket, settings: Settings, room: Room) -> RoomConfig:
    server_logger = logging.getLogger("worker.hypercorn")
    server_logger.setLevel(logging.WARNING)
    config = RoomConfig(room, settings.control_frames_per_s_max)
    config.bind = [f"fd://{listening.detach()}"]
    config.backlog = ACCEPTS_PER_TURN
    # HTTP/2 belongs to a proxy: Hypercorn's closes all streams of a connection on one late frame.
    config.alpn_protocols = ["http/1.1"]
    config.accesslog = None
    config.errorlog = server_logger
    config.include_server_header = False
    # Hypercorn counts text in characters and closes with 1009; `decoding.load` counts bytes and answers with an error.
    config.websocket_max_message_size = settings.frame_bytes_max
    config.websocket_ping_interval = PING_EVERY_S
    config.graceful_timeout = GRACEFUL_TIMEOUT_S
    config.shutdown_timeout = SHUTDOWN_TIMEOUT_S
    return config
