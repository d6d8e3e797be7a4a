"""Hypercorn's WebSocket stream as RFC 6455 demands it, where 0.18 falls short.

Without this class: after 1009 the rest of the message is collected without a bound; a violation ends the connection
without a close frame, which a page sees as 1006; a ping is answered inside the read loop, which thereby waits for a
client that does not read; a lost connection is kept until its next ping is due; a wrong version is answered with 400;
the connection of a refused handshake stays open for ever; and a flood of tiny frames keeps the event loop for seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

from hypercorn.protocol.events import Data, EndBody, Event, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.events import Event as WebSocketEvent
from wsproto.frame_protocol import CloseReason

from worker.protocol.meter import Meter
from worker.transports.front.hypercorn.connections import RoomConfig
from worker.transports.front.hypercorn.direct import transport_of, write_now
from worker.transports.front.hypercorn.slices import Slice

CLOSE_TIMEOUT_S = 3.0
"""How long a client may keep sending after 1009. If its bytes were not read, a reset would overtake the close frame."""

LINGER_S = 1.0
"""The same after 1008, and after a close of the application."""

NEEDLESS_BELOW = 256
"""A fragment with fewer characters or bytes is needless, unless it ends its message. 16 KiB are usual."""

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
        self._deaf = False
        self._slice = Slice()
        assert isinstance(self.config, RoomConfig)
        self._frames_per_s_max = self.config.control_frames_per_s_max
        self._meter = Meter(self._frames_per_s_max, _now_ms())
        self._frame_size = 0
        self._pong: Pong | None = None
        self._answering = False

    async def handle(self, event: Event) -> None:
        if self._deaf and isinstance(event, Data):
            return
        await super().handle(event)
        if self.closed:
            self._over.set()
            if not isinstance(event, StreamClosed):
                await self._end_refused()

    async def _end_refused(self) -> None:
        """End the connection of a refused handshake, and tell the application if it is waiting already."""
        if self.app_put is not None:
            await self.app_put({"type": "websocket.disconnect", "code": CloseReason.ABNORMAL_CLOSURE})
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def app_send(self, message: Any) -> None:
        """Send an ASGI message. A "websocket.send" may have `frames`: text messages as bytes, written at once.

        They skip all other layers: without extensions a frame is its header and its payload.
        """
        frames = message and message.get("frames")
        if frames is None:
            if message is None and self.state is ASGIWebsocketState.CLOSED and not self.closed:
                # Whatever comes meanwhile is thrown away.
                self._refused = True
                await self._over_within(LINGER_S)
            await super().app_send(message)
        elif not self.closed and self.connection.state is ConnectionState.OPEN:
            data = b"".join([part for one in frames for part in (head(len(one)), one)])
            if not write_now(self._transport, data):
                await self.send(Data(stream_id=self.stream_id, data=data))

    async def _handle_events(self) -> None:
        self._slice.begin()
        for event in self.connection.events():
            if self._costs(event) and not self._meter.take(_now_ms()):
                self._deaf = True
                if not self._refused:
                    most = self._frames_per_s_max
                    reason = f"More than {most} control frames, empty frames or tiny fragments per second."
                    self.task_group.spawn(self._refuse, CloseReason.POLICY_VIOLATION, reason, LINGER_S)
                return
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
            await self._slice.breathe()

    def _costs(self, event: WebSocketEvent) -> bool:
        """Return whether an event ends a frame with next to nothing of a message, or of a message that is refused."""
        if not isinstance(event, TextMessage | BytesMessage):
            return isinstance(event, Ping | Pong)
        self._frame_size += len(event.data)
        if not event.frame_finished:
            return False
        size, self._frame_size = self._frame_size, 0
        return self._refused or not size or (size < NEEDLESS_BELOW and not event.message_finished)

    async def _receive(self, message: TextMessage | BytesMessage) -> None:
        try:
            self.buffer.extend(message)
        except FrameTooLargeError:
            self.buffer.clear()
            self._refused = True
            self.task_group.spawn(self._refuse, CloseReason.MESSAGE_TOO_BIG, None, CLOSE_TIMEOUT_S)
            return
        if message.message_finished:
            assert self.app_put is not None
            await self.app_put(self.buffer.to_message())
            self.buffer.clear()

    async def _refuse(self, code: CloseReason, reason: str | None, timeout_s: float) -> None:
        """Close with a code, and cut the connection if the client does not."""
        await self._send_wsproto_event(CloseConnection(code=code, reason=reason))
        if not await self._over_within(timeout_s):
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


def _now_ms() -> float:
    return asyncio.get_running_loop().time() * 1000
