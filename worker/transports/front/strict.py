"""Hypercorn's WebSocket stream as RFC 6455 has it, where 0.18 falls short. It has no switches for any of this.

What it does otherwise: after 1009 it collects the rest of the message without a bound; a violation ends the connection
without a close frame, which a page sees as 1006; a ping is answered inside the read loop, which thereby waits for a
client that does not read; a connection that is lost is kept until its next ping is due; a wrong version gets 400; and a
plain connection may become HTTP/2, which the listener has turned off for TLS because it loses streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import hypercorn.protocol.h11 as h11_protocol
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.protocol.events import Data, EndBody, Event, Response, StreamClosed
from hypercorn.protocol.ws_stream import FrameTooLargeError, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason

from worker.transports.front.direct import DirectStream, transport_of, write_now
from worker.transports.front.inbox import spawn_app

LAST_WORD_S = 3.0
"""How long a client may go on after it was told 1009. If nobody read on, a reset would overtake the close frame."""

VERSION = b"13"
TEXT_FIN = 0x81
HEAD_16, HEAD_64 = struct.Struct("!BBH"), struct.Struct("!BBQ")


def install() -> None:
    """Let Hypercorn use it from now on, and the short way for event streams, and small inboxes."""
    h11_protocol.WSStream = StrictStream  # type: ignore[assignment, attr-defined]  # not exported
    TaskGroup.spawn_app = spawn_app  # type: ignore[assignment]
    h11_protocol.HTTPStream = DirectStream  # type: ignore[assignment, attr-defined]  # not exported
    h11_protocol.H11Protocol._check_protocol = _stay_with_http1  # type: ignore[method-assign, assignment]  # noqa: SLF001


async def _stay_with_http1(_protocol: h11_protocol.H11Protocol, _request: object) -> None:
    """Take no offer to speak HTTP/2."""


def head(size: int) -> bytes:
    """Return the header of a whole text message of so many bytes from a server."""
    if size < 126:
        return bytes((TEXT_FIN, size))
    if size < 1 << 16:
        return HEAD_16.pack(TEXT_FIN, 126, size)
    return HEAD_64.pack(TEXT_FIN, 127, size)


class StrictStream(WSStream):
    """One WebSocket connection."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._transport = transport_of(self.send)
        self._over = asyncio.Event()
        self._refused = False
        self._pong: Pong | None = None
        self._answering = False

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        if self.closed:
            self._over.set()

    async def app_send(self, message: Any) -> None:
        """Also takes `frames` in a "websocket.send": several text messages as bytes, written to the socket at once.

        No other layer looks at them: without extensions a frame is its header and its payload.
        """
        frames = message and message.get("frames")
        if frames is None:
            await super().app_send(message)
        elif not self.closed and self.connection.state is ConnectionState.OPEN:
            data = b"".join([part for one in frames for part in (head(len(one)), one)])
            if not write_now(self._transport, data):
                await self.send(Data(stream_id=self.stream_id, data=data))

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, CloseConnection):
                # The peer's close is echoed; else it is wsproto's word for a violation, and the peer is told.
                theirs = self.connection.state is ConnectionState.REMOTE_CLOSING
                await self._send_wsproto_event(event.response() if theirs else event)
                await self.send(StreamClosed(stream_id=self.stream_id))
                return
            if isinstance(event, TextMessage | BytesMessage) and not self._refused:
                await self._take(event)
            elif isinstance(event, Ping):
                self._answer(event)

    async def _take(self, message: TextMessage | BytesMessage) -> None:
        try:
            self.buffer.extend(message)
        except FrameTooLargeError:
            self.buffer.clear()
            self._refused = True
            self.task_group.spawn(self._refuse)
            return
        if message.message_finished:
            assert self.app_put is not None
            await self.app_put(self.buffer.to_message())
            self.buffer.clear()

    async def _refuse(self) -> None:
        """Close with 1009, and cut the connection if the client does not."""
        await self._send_wsproto_event(CloseConnection(code=CloseReason.MESSAGE_TOO_BIG))
        if not await self._over_within(LAST_WORD_S):
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_pings(self) -> None:
        """Ping until the connection is over: what it holds is only freed when this ends too."""
        assert self.config.websocket_ping_interval is not None
        while not self.closed:
            await self._send_wsproto_event(Ping())
            await self._over_within(self.config.websocket_ping_interval)

    async def _over_within(self, timeout_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        return self._over.is_set()

    def _answer(self, ping: Ping) -> None:
        """Answer a ping beside the read loop. Of several that wait only the last is answered, as the RFC allows."""
        self._pong = ping.response()
        if not self._answering:
            self._answering = True
            self.task_group.spawn(self._answer_pings)

    async def _answer_pings(self) -> None:
        while (pong := self._pong) is not None and not self.closed:
            self._pong = None
            await self._send_wsproto_event(pong)
        self._answering = False

    async def _send_error_response(self, status_code: int) -> None:
        """Refuse a handshake; one of another version is told ours."""
        if status_code == 400 and not self.handshake.accepted and self.handshake.version != VERSION:
            headers = [(b"content-length", b"0"), (b"connection", b"close"), (b"sec-websocket-version", VERSION)]
            await self.send(Response(stream_id=self.stream_id, status_code=426, headers=headers))
            await self.send(EndBody(stream_id=self.stream_id))
        else:
            await super()._send_error_response(status_code)
