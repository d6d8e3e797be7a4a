"""Hypercorn's HTTP/1.1 connection, stricter: what a proxy may read in another way is refused, and the connection ends.

It speaks nothing else. An offer to speak another protocol is ignored, as RFC 9110 allows, and the request answered:
WebSockets never come here (see `doorway`), and HTTP/2 belongs to a proxy, because Hypercorn's closes all streams of a
connection on one late frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import h11
from hypercorn.events import Closed
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol

from worker.transports.front.heads import fault, problem
from worker.transports.front.hypercorn.direct import DirectStream
from worker.transports.front.overtime import Overtime
from worker.transports.wake import Wake

NO_HTTP = "This is no valid HTTP/1.1 request."


def refuse_folds(lines: Iterable[bytes]) -> Iterable[bytes]:
    """Yield the lines of headers or trailers. Raises LocalProtocolError, which h11 turns around, for a folded one."""
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise h11.LocalProtocolError("folded header line")
        yield line


class CanRead:
    """Hypercorn's event that a connection may go on reading, for its one reader."""

    def __init__(self) -> None:
        self._wake = Wake()

    async def set(self) -> None:
        """Let the reader go on."""
        self._wake.set()

    async def clear(self) -> None:
        """Let the reader wait."""
        self._wake.clear()

    async def wait(self) -> None:
        """Wait until it may go on."""
        await self._wake.wait()

    def is_set(self) -> bool:
        """Return whether it may go on."""
        return self._wake.is_set()


class StrictProtocol(H11Protocol):
    """One connection."""

    def __init__(self, transport: asyncio.WriteTransport, overtime: Overtime, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._transport = transport
        self.can_read = CanRead()
        self._overtime = overtime

    async def _check_protocol(self, _: h11.Request) -> None:
        """Let any request pass."""

    async def _create_stream(self, request: h11.Request) -> None:
        wrong = fault(request.headers)
        if wrong is not None:
            await self._send_error_response(400, wrong, whole=request.method != b"HEAD")
            await self.send(Closed())
            return
        self.stream = DirectStream(
            self._transport, self._overtime, self.app, self.config, self.context, self.task_group, self.ssl,
            self.client, self.server, self.stream_send, STREAM_ID,
        )  # fmt: skip
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_error_response(self, status_code: int, detail: str = NO_HTTP, *, whole: bool = True) -> None:
        """Refuse a request, without the body of the answer unless `whole`."""
        body = problem(status_code, detail)
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
