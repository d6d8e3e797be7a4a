"""Hypercorn's WebSocket stream as RFC 6455 demands it, where 0.18 falls short.

Without this class: after 1009 the rest of the message is collected without a bound; a violation ends the connection
without a close frame, which a page sees as 1006; a ping is answered inside the read loop, which thereby waits for a
client that does not read; a lost connection is kept until its next ping is due; a wrong version is answered with 400.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

from hypercorn.protocol.events import Data, EndBody, Event, Response, StreamClosed
from hypercorn.protocol.ws_stream import FrameTooLargeError, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason

from worker.transports.front.hypercorn.direct import transport_of, write_now

CLOSE_TIMEOUT_S = 3.0
"""How long a client may keep sending after 1009. If its bytes were not read, a reset would overtake the close frame."""

VERSION = b"13"
TEXT_FIN = 0x81
HEAD_16, HEAD_64 = struct.Struct("!BBH"), struct.Struct("!BBQ")


def head(size: int) -> bytes:
    """Return the frame header of a whole text message of `size` bytes, as a server sends it."""
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
        """Send an ASGI message. A "websocket.send" may have `frames`: text messages as bytes, written at once.

        They skip all other layers: without extensions a frame is its header and its payload.
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
                # A close of the peer is echoed. Any other is wsproto's event for a violation, and is sent to the peer.
                theirs = self.connection.state is ConnectionState.REMOTE_CLOSING
                await self._send_wsproto_event(event.response() if theirs else event)
                await self.send(StreamClosed(stream_id=self.stream_id))
                return
            if isinstance(event, TextMessage | BytesMessage) and not self._refused:
                await self._receive(event)
            elif isinstance(event, Ping):
                self._answer(event)

    async def _receive(self, message: TextMessage | BytesMessage) -> None:
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
        if not await self._over_within(CLOSE_TIMEOUT_S):
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_pings(self) -> None:
        """Ping until the connection is over: its memory is freed only when this task ends too."""
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
        """Answer a ping beside the read loop. Of several pending ones only the last is answered, as the RFC allows."""
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
        """Refuse a handshake. For one of another version the answer names ours."""
        if status_code == 400 and not self.handshake.accepted and self.handshake.version != VERSION:
            headers = [(b"content-length", b"0"), (b"connection", b"close"), (b"sec-websocket-version", VERSION)]
            await self.send(Response(stream_id=self.stream_id, status_code=426, headers=headers))
            await self.send(EndBody(stream_id=self.stream_id))
        else:
            await super()._send_error_response(status_code)
