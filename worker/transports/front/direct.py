"""The short way to the socket: bytes that pass by Hypercorn's layers while nothing waits to be sent before them.

On the long way a frame or a chunk becomes two or three events, goes through h11, and takes a lock: as much work as to
send it. The short way sends the same bytes. A client that does not take everything at once is served on the long way
until it has, and whoever writes waits there as ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import suppress_body


def transport_of(stream_send: Any) -> asyncio.WriteTransport:
    """Return where the bytes of a stream end up. Hypercorn 0.18 has no public way there; a test looks at this one."""
    transport: asyncio.WriteTransport = stream_send.__self__.send.__self__.writer.transport
    return transport


def write_now(transport: asyncio.WriteTransport, data: bytes) -> bool:
    """Write `data` unless something waits to be sent or the connection is over; tell whether it was written."""
    if transport.get_write_buffer_size() or transport.is_closing():
        return False
    transport.write(data)
    return True


class DirectStream(HTTPStream):
    """One request. The pieces of an answer whose length is not known before take the short way."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._transport = transport_of(self.send)
        self._chunked = False

    async def app_send(self, message: Any) -> None:
        """Take an ASGI message; None when the application is done."""
        piece = self._chunked and message and message.get("more_body") and message.get("body")
        if piece and write_now(self._transport, b"%x\r\n%b\r\n" % (len(piece), piece)):
            return
        await super().app_send(message)
        if message and message["type"] == "http.response.start":
            self._chunked = self._is_chunked(message)

    def _is_chunked(self, start: Any) -> bool:
        """Tell whether h11 sends the body of this answer in chunks (RFC 9112, 6.1)."""
        return (
            self.scope["http_version"] == "1.1"
            and not suppress_body(self.scope["method"], start["status"])
            and all(name.lower() != b"content-length" for name, _ in start["headers"])
        )
