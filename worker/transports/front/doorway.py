"""Whose a TCP connection is: at each request boundary the next bytes say whether a WebSocket begins.

A handshake at a path of the table takes the connection over. Everything else is Hypercorn's, byte for byte; after each
complete answer the next request is looked at again, because proxies keep connections for requests of any kind.
"""

from __future__ import annotations

import asyncio

from worker.transports.front.farewell import Farewell
from worker.transports.front.house import Guest, House, Http
from worker.transports.front.stream import Stream
from worker.transports.front.websockets import handshake
from worker.transports.front.websockets.sessions import Opening, Table
from worker.transports.front.websockets.websocket import WebSocket

HEAD_TIMEOUT_S = 5.0
"""How long a new connection may take to send the head of its first request. Hypercorn gives later ones as long."""

HEAD_BYTES_MAX = 64 * 1024
"""Longer heads are Hypercorn's, which refuses them."""


class Doorway(Guest):
    """The first protocol of each connection, and the last unless a WebSocket takes it over."""

    __slots__ = ("_head", "_http", "_looks", "_stream", "_table", "_timer")

    def __init__(self, house: House, table: Table) -> None:
        self._house = house
        self._table = table
        # At a request boundary it looks; what has come since then and may be a handshake is held back.
        self._looks = True
        self._head = b""
        self._stream: Stream | None = None
        self._http: Http | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer = self._house.enter(transport)
        self._timer = asyncio.get_running_loop().call_later(HEAD_TIMEOUT_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Look at it, at a request boundary; else pass it on."""
        self._house.hear(self._peer)
        if not self._looks:
            self._pass_on(data)
            return
        head = self._head = self._head + data
        if len(head) > HEAD_BYTES_MAX or not handshake.may_be(head, self._table):
            self._pass_on(head)
        elif handshake.HEAD_END.search(head):
            found = handshake.read(head)
            client = (self._transport.get_extra_info("peername") or ("",))[0]
            opening = None if found is None else found.opening(self._house.gateway.prefixes, client, self._peer)
            if found is not None and opening is not None and opening.path in self._table:
                self._take_over(found, opening)
            else:
                self._pass_on(head)

    def _take_over(self, found: handshake.Handshake, opening: Opening) -> None:
        """Answer a handshake, and let a WebSocket have the connection, or the refusal be its end."""
        self._timer.cancel()
        if self._http is not None:
            self._http.leave()
            self._http = None
        session_type = self._table[opening.path]
        try:
            answer = found.accept(opening, session_type.choose(opening.offered))
        except handshake.RefusedHandshake as refusal:
            Farewell(self._house, self._peer, self._transport, refusal.answer)
        else:
            self._transport.write(answer)
            WebSocket(self._house, self._peer, self._transport, session_type).open(opening)

    def _pass_on(self, data: bytes) -> None:
        """Give bytes to Hypercorn, which serves the connection from the first ones on."""
        self._looks, self._head = False, b""
        if self._stream is None:
            self._timer.cancel()
            self._stream = Stream(self._transport)
            self._http = self._house.serve_http(self._peer, self._stream, self._on_idle)
        self._stream.feed(data)

    def _on_idle(self) -> None:
        """Look at the next request, unless Hypercorn has a part of it already."""
        assert self._http is not None
        self._looks = not self._http.unread

    def eof_received(self) -> bool:
        """Let Hypercorn read the end; without it the connection is closed."""
        if self._stream is not None:
            self._stream.feed_eof()
        return self._stream is not None

    def pause_writing(self) -> None:
        """Let Hypercorn wait."""
        if self._stream is not None:
            self._stream.pause_writing()

    def resume_writing(self) -> None:
        """Let Hypercorn go on."""
        if self._stream is not None:
            self._stream.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Let Hypercorn end."""
        self._timer.cancel()
        if self._stream is not None:
            self._stream.lose()
        self._http = None
        super().connection_lost(error)
