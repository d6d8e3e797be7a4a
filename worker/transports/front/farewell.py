"""The end of a TCP connection that has had its last word."""

from __future__ import annotations

import asyncio

from worker.transports.front.house import Guest, House
from worker.transports.room import Peer

LINGER_S = 3.0
"""How long what a client still sends is read, and thrown away. Unread bytes would reset the connection, and the reset
overtakes what was sent last."""


class Farewell(Guest):
    """Says the last word, waits for the client to close its half of the connection, and cuts what takes too long."""

    __slots__ = ("_cut",)

    def __init__(self, house: House, peer: Peer, transport: asyncio.Transport, last: bytes) -> None:
        super().__init__(house, peer, transport)
        transport.write(last)
        try:
            transport.write_eof()
        except OSError:
            # The client has reset the connection, and the loop does not know it yet.
            transport.abort()
        transport.resume_reading()
        self._cut = asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        self._cut.cancel()
        super().connection_lost(error)
