"""Hypercorn's HTTP/1.1 connection, stricter: what a proxy may read in another way is refused, and the connection ends.

RFC 9112 leaves a server little choice in these cases, and none of them comes from a client that means well. h11 lets
them pass: Content-Length beside Transfer-Encoding, folded lines, and control characters in values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import h11
import msgspec
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol

from worker.transports.front.hypercorn.connections import RoomConfig
from worker.transports.room import STATE_NAME

Headers = Iterable[tuple[bytes, bytes]]

NO_HTTP = "This is no valid HTTP/1.1 request."

LENGTH, ENCODING = b"content-length", b"transfer-encoding"
CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
NOT_LATIN_1 = re.compile(rb"[\x80-\x9f]")
"""Bytes that mean nothing in Latin-1, which is how values are read. UTF-8 has them in most letters."""

FREE_NAMES = (b"cookie",)
"""Headers whose values may be in any encoding: a browser sends the cookies of all programs on the same host."""

ASCII_NAMES = (b"connection", b"upgrade")
"""Headers of a handshake that are read as words, as are all that begin with `sec-websocket-`."""


def fault(headers: Headers) -> str | None:
    """Return what is wrong with the headers of a request, whose names are in lower case; None if nothing is."""
    names = dict(headers)
    if LENGTH in names and ENCODING in names:
        return "The request has both Content-Length and Transfer-Encoding. Send one of them."
    if b"sec-websocket-key" in names and (ENCODING in names or names.get(LENGTH, b"0") != b"0"):
        return "The handshake of a WebSocket has no body. Send nothing before it is answered."
    for name, value in headers:
        if CONTROLS.search(value) or (name not in FREE_NAMES and NOT_LATIN_1.search(value)):
            return f"The header {_shown(name)} has characters that are not printable Latin-1."
        if (name in ASCII_NAMES or name.startswith(b"sec-websocket-")) and not value.isascii():
            return f"The header {_shown(name)} has characters that are not ASCII."
    return None


def _shown(name: bytes) -> str:
    return name[:100].decode("ascii")


def refuse_folds(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Yield the lines of headers or trailers. Raises LocalProtocolError, which h11 turns around, for a folded one."""
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise h11.LocalProtocolError("folded header line")
        yield line


class StrictProtocol(H11Protocol):
    """One connection that speaks HTTP/1.1, and never HTTP/2."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert isinstance(self.config, RoomConfig)
        self._room, self._peer = self.config.room, self.connection_state[STATE_NAME]

    async def handle(self, event: Event) -> None:
        """Take what came from the socket."""
        if isinstance(event, RawData):
            self._room.heard(self._peer)
        await super().handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Ignore an offer to speak HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        wrong = fault(request.headers)
        if wrong is None:
            await super()._create_stream(request)
        else:
            await self._send_error_response(400, wrong, whole=request.method != b"HEAD")
            await self.send(Closed())

    async def _send_error_response(self, status_code: int, detail: str = NO_HTTP, *, whole: bool = True) -> None:
        """Refuse a request with a problem object (RFC 9457), without its body unless `whole`."""
        problem = {"type": "about:blank", "title": "Bad Request", "status": status_code, "detail": detail}
        body = msgspec.json.encode({**problem, "code": "bad_request", "retriable": False})
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        if whole:
            await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
