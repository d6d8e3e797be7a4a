"""Fast path: writes straight to the transport while nothing is queued, past Hypercorn's layers.

On the usual path a frame or a chunk becomes two or three events, goes through h11 and waits for a lock, which costs as
much as sending it. The fast path sends the same bytes. If a client does not accept everything at once, the rest goes
the usual path, where the writer waits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypercorn.protocol.events import Body, Event, Request
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import suppress_body

from worker.transports.front.hypercorn.slices import Slice


def transport_of(stream_send: Any) -> asyncio.WriteTransport:
    """Return the transport that a stream writes to. Hypercorn has no public way to it; see the table in `patches`."""
    transport: asyncio.WriteTransport = stream_send.__self__.send.__self__.writer.transport
    return transport


def write_now(transport: asyncio.WriteTransport, data: bytes) -> bool:
    """Write `data` unless earlier bytes are queued or the connection is over. Return whether it was written."""
    if transport.get_write_buffer_size() or transport.is_closing():
        return False
    transport.write(data)
    return True


class DirectStream(HTTPStream):
    """One request. The chunks of an answer of unknown length take the fast path."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._transport = transport_of(self.send)
        self._chunked = False
        self._slice = Slice()

    async def handle(self, event: Event) -> None:
        """Take an event of the request. A body may come in chunks of one byte: the loop turns between them."""
        if isinstance(event, Body):
            await self._slice.breathe()
        elif isinstance(event, Request):
            self._slice.begin()
        await super().handle(event)

    async def app_send(self, message: Any) -> None:
        """Send an ASGI message; None when the application is done."""
        chunk = self._chunked and message and message.get("more_body") and message.get("body")
        if chunk and write_now(self._transport, b"%x\r\n%b\r\n" % (len(chunk), chunk)):
            return
        await super().app_send(message)
        if message and message["type"] == "http.response.start":
            self._chunked = self._is_chunked(message)

    def _is_chunked(self, start: Any) -> bool:
        """Return whether h11 sends the body of this answer in chunks (RFC 9112, 6.1)."""
        return (
            self.scope["http_version"] == "1.1"
            and not suppress_body(self.scope["method"], start["status"])
            and all(name.lower() != b"content-length" for name, _ in start["headers"])
        )
