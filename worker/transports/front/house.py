"""What all connections of a server share, and what they do alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from worker.transports.front.overtime import Overtime
from worker.transports.front.stream import Stream
from worker.transports.gateway import Gateway
from worker.transports.room import Peer


class Http(Protocol):
    """The part of a connection that Hypercorn serves."""

    @property
    def unread(self) -> bool:
        """Whether bytes of a next request were received already."""
        ...

    def leave(self) -> None:
        """End, between two requests, and let the socket be."""
        ...


class House:
    """What all connections of a server share.

    `serve_http` begins to serve HTTP on a stream, and calls back after each complete answer.
    """

    def __init__(
        self,
        gateway: Gateway,
        serve_http: Callable[[Peer, Stream, Callable[[], None]], Http],
    ) -> None:
        self.gateway = gateway
        self.serve_http = serve_http
        self.overtime = Overtime()
        self._room = gateway.room
        self._open = 0
        self._empty = asyncio.Event()

    def enter(self, transport: asyncio.Transport) -> Peer:
        """Let a new connection in."""
        self._open += 1
        self._empty.clear()
        return self._room.enter(transport.abort)

    def leave(self, peer: Peer) -> None:
        """Let a connection go, once it is closed."""
        self._room.leave(peer)
        self._open -= 1
        if not self._open:
            self._empty.set()

    def hear(self, peer: Peer) -> None:
        """Note that bytes came on a connection."""
        self._room.heard(peer)

    async def wait_empty(self, timeout_s: float) -> None:
        """Wait until no connection is open, or the time is over."""
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)

    def cut(self) -> None:
        """End all connections at once."""
        for peer in self._room:
            peer.cut()


class Guest(asyncio.Protocol):
    """A protocol that a connection has for a while: one gives it to the next, and the last sees it go."""

    __slots__ = ("_house", "_peer", "_transport")

    def __init__(self, house: House, peer: Peer, transport: asyncio.Transport) -> None:
        self._house = house
        self._peer = peer
        self._transport = transport
        transport.set_protocol(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Forget the connection."""
        self._house.leave(self._peer)
