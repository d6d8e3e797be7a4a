"""Lets each connection enter the room of connections, and cuts those that are still open at the end of a shutdown.

On Python 3.12 and later Hypercorn waits for every connection, also for one that stopped in the middle of a request or
does not read.
"""

from __future__ import annotations

from typing import Any

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config

from worker.transports.room import STATE_NAME, Room


class RoomConfig(Config):
    """The configuration of one server, which also knows the room of its connections."""

    def __init__(self, room: Room, control_frames_per_s_max: int) -> None:
        super().__init__()
        self.room = room
        self.control_frames_per_s_max = control_frames_per_s_max

    def cut_connections(self) -> None:
        """Abort all connections that are still open."""
        for peer in self.room:
            peer.cut()


class RoomServer(TCPServer):
    """One connection, which is in the room while its socket is open. Its requests find it in their state."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert isinstance(self.config, RoomConfig)
        self._room = self.config.room
        self._peer = self._room.enter(self.writer.transport.abort)
        self.state = {**self.state, STATE_NAME: self._peer}

    async def run(self) -> None:
        """Serve until the socket is closed."""
        try:
            await super().run()
        finally:
            self._room.leave(self._peer)

    async def _read_data(self) -> None:
        """Read until the client is gone. Hypercorn would keep the socket for the rest of its idle time."""
        await super()._read_data()
        await self.idle_task.stop()
