"""Fast path: writes straight to the transport while nothing is queued, past Hypercorn's layers.

On the usual path a chunk becomes two or three events, goes through h11 and waits for a lock, which costs as much as
sending it. The fast path sends the same bytes. If a client does not accept everything at once, the rest goes
the usual path, where the writer waits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypercorn.protocol.events import Body, Event, Request
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import suppress_body

from worker.transports.front.overtime import Overtime
from worker.transports.front.stream import PUSH_NAME


class DirectStream(HTTPStream):
    """One request. The chunks of an answer of unknown length take the fast path."""

    def __init__(self, transport: asyncio.WriteTransport, overtime: Overtime, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._transport = transport
        self._chunked = False
        self._overtime = overtime
        self._until_s = 0.0

    async def handle(self, event: Event) -> None:
        """Take an event of the request. A body may come in chunks of one byte: the loop turns between them."""
        if isinstance(event, Body):
            if self._overtime.over(self._until_s):
                await self._overtime.wait_turn()
                self._until_s = self._overtime.begin()
        elif isinstance(event, Request):
            self._until_s = self._overtime.begin()
        await super().handle(event)
        if isinstance(event, Request):
            # The application has not begun yet.
            self.scope["extensions"][PUSH_NAME] = self.push  # type: ignore[assignment]  # a name of ours

    def push(self, chunk: bytes) -> bool:
        """Send a chunk now, unless earlier bytes are queued, or it is no chunk. Return whether it was sent."""
        transport = self._transport
        if not self._chunked or transport.get_write_buffer_size() or transport.is_closing():
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        return True

    async def app_send(self, message: Any) -> None:
        """Send an ASGI message; None when the application is done."""
        chunk = message and message.get("more_body") and message.get("body")
        if chunk and self.push(chunk):
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
