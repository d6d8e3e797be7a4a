"""One WebSocket connection: no task, no stream and no queue, only what the event loop calls.

`websockets` reads frames; what is sent is a head and a text, written at once. A client that does not read is sent
nothing more: what it misses stays in the logs, where it merges into larger frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SEND_EOF, Protocol, Side, State

from worker.protocol.closing import CloseConnection
from worker.protocol.meter import Meter
from worker.transports.front.farewell import Farewell
from worker.transports.front.house import Guest, House
from worker.transports.front.websockets.frames import PING, Fragments, LengthCheck, head
from worker.transports.front.websockets.sessions import Opening, Session, SessionType
from worker.transports.room import Peer

SEND_BYTES = 8 * 1024
"""About how much is sent at once. Small, so that the rest for a slow reader can still merge into larger frames."""

READ_BYTES = 128
"""After so many bytes it is seen whether the time is used up that one connection may read at once."""

NEEDLESS_BELOW = 256
"""A fragment with fewer bytes is needless, unless it ends its message. 16 KiB are usual."""

PING_EVERY_MS = 20_000
"""How often a client is pinged, so that proxies keep the connection open."""

BUG = CloseConnection(CloseCode.INTERNAL_ERROR, "Something went wrong in the worker.")

logger = logging.getLogger(__name__)
frame_logger = logging.getLogger("worker.websockets")
frame_logger.setLevel(logging.WARNING)


def gather(pull: Callable[[float], bytes | None], now_ms: float) -> tuple[bytes, bool]:
    """Return the frames of the messages that are ready, up to about SEND_BYTES, and whether there may be more."""
    first = pull(now_ms)
    if first is None:
        return b"", False
    data = pull(now_ms) if len(first) < SEND_BYTES else None
    if data is None:
        return head(len(first)) + first, len(first) >= SEND_BYTES
    parts, size = [head(len(first)), first], len(first)
    while data is not None:
        parts += (head(len(data)), data)
        size += len(data)
        data = pull(now_ms) if size < SEND_BYTES else None
    return b"".join(parts), size >= SEND_BYTES


def _costs(frame: Frame) -> bool:
    """Return whether a frame carries nothing, or next to nothing, of a message."""
    if frame.opcode in (Opcode.PING, Opcode.PONG):
        return True
    size = len(frame.data)
    return frame.opcode is not Opcode.CLOSE and (not size or (size < NEEDLESS_BELOW and not frame.fin))


class WebSocket(Guest):
    """Moves messages between a socket and a session."""

    kind = "websocket"
    __slots__ = (
        "_blocked_since", "_finishing", "_lengths", "_message", "_meter", "_pinged_ms", "_pong", "_protocol", "_ready",
        "_session", "_silent_since", "_type",
    )  # fmt: skip

    def __init__(self, house: House, peer: Peer, transport: asyncio.Transport, session_type: SessionType) -> None:
        super().__init__(house, peer, transport)
        transport.set_write_buffer_limits(0)
        size_max = house.gateway.settings.frame_bytes_max
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=size_max, logger=frame_logger)
        self._lengths = LengthCheck()
        self._meter: Meter | None = None
        self._message: Fragments | None = None
        self._type = session_type
        self._session: Session | None = None
        self._silent_since = self._pinged_ms = house.gateway.clock.monotonic_ms()
        # Whether it waits for its turn of the delivery, since when the socket accepts nothing, the pong that waits.
        self._ready = False
        self._blocked_since: float | None = None
        self._pong = b""
        self._finishing = False

    def open(self, opening: Opening) -> None:
        """Begin, once the handshake is answered."""
        try:
            self._session = self._type.open(opening, self._wake)
            self._house.gateway.connect(self)
        except CloseConnection as close:
            log_ids = {"correlation_id": opening.correlation.correlation_id}
            logger.info("refused", extra={"close_code": int(close.code), "path": opening.path, **log_ids})
            self._close(close)
        except Exception:
            self._break()

    # ---- in ----------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Act on the messages in it. What takes too long is continued after all others had their turn."""
        self._house.hear(self._peer)
        overtime, until_s = self._house.overtime, self._house.overtime.begin()
        for place in range(0, len(data), READ_BYTES):
            self._read(data[place : place + READ_BYTES])
            if self._session is None:
                return
            if overtime.over(until_s):
                self._transport.pause_reading()
                overtime.wait(partial(self._read_on, data[place + READ_BYTES :]), until_s)
                return

    def _read_on(self, data: bytes) -> None:
        if self._session is not None:
            self._transport.resume_reading()
            self.data_received(data)

    def _read(self, data: bytes) -> None:
        protocol, valid = self._protocol, self._lengths.valid(data)
        protocol.receive_data(data[:valid])
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            if _costs(frame) and not self._within_limit():
                return
            self._take(frame)
            if self._session is None:
                return
        if valid < len(data):
            protocol.fail(CloseCode.PROTOCOL_ERROR, "a length in more bytes than it needs")
        self._answer()

    def _within_limit(self) -> bool:
        """Count a frame that carries next to nothing; close for too many of them."""
        most, now_ms = self._house.gateway.settings.control_frames_per_s_max, self._house.gateway.clock.monotonic_ms()
        if self._meter is None:
            self._meter = Meter(most, now_ms)
        if self._meter.take(now_ms):
            return True
        reason = f"More than {most} control frames, empty frames or tiny fragments per second."
        self._close(CloseConnection(CloseCode.POLICY_VIOLATION, reason))
        return False

    def _take(self, frame: Frame) -> None:
        """Act on a frame, if it completes a message."""
        opcode = frame.opcode
        if opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        try:
            if opcode is not Opcode.CONT:
                self._message = Fragments(is_text=opcode is Opcode.TEXT)
            assert self._message is not None, "`websockets` refuses the continuation of nothing"
            self._message.add(bytes(frame.data), last=frame.fin)
        except UnicodeDecodeError:
            self._protocol.fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
            self._answer()
            return
        if frame.fin:
            message, self._message = self._message.whole(), None
            self._receive(message)

    def _receive(self, message: str | bytes) -> None:
        assert self._session is not None
        try:
            self._session.receive(message, self._house.gateway.clock.monotonic_ms())
        except CloseConnection as close:
            self._close(close)
        except Exception:
            self._break()

    def _answer(self) -> None:
        """Send what `websockets` has to say: pongs, the last of which suffices, and a close frame, which is the end."""
        said = self._protocol.data_to_send()
        if said and said[-1] == SEND_EOF:
            self._leave(said[-2])
        elif said and self._blocked_since is None:
            self._transport.write(said[-1])
        elif said:
            self._pong = said[-1]

    def eof_received(self) -> None:
        """Close, as asyncio does for None: who sends nothing more has left."""

    # ---- out ---------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._ready:
            self._ready = True
            self._house.gateway.delivery.add(self)

    def flush(self, now_ms: float) -> None:
        """Send what the session has, up to about SEND_BYTES: one system call instead of many."""
        if self._session is None or self._blocked_since is not None:
            self._ready = False
            return
        try:
            data, more = gather(self._session.pull, now_ms)
        except Exception:
            self._break()
            return
        self._ready = False
        if data:
            self._silent_since = now_ms
            self._transport.write(data)
        elif self._finishing:
            self._close(self._type.finished)
            return
        if (more or self._finishing) and self._blocked_since is None:
            self._wake()

    def pause_writing(self) -> None:
        """Send nothing more: the socket does not accept everything at once."""
        self._blocked_since = self._house.gateway.clock.monotonic_ms()

    def resume_writing(self) -> None:
        """Send what has collected."""
        self._blocked_since = None
        if self._pong:
            self._transport.write(self._pong)
            self._pong = b""
        self._wake()

    # ---- time and end ------------------------------------------------------------------------------------------------

    def tick(self, now_ms: float) -> None:
        """Send a ping or what the dialect sends after a silence; close when the session ends or the client stalls."""
        if self._session is None:
            return
        if self._blocked_since is not None:
            if now_ms - self._blocked_since >= self._house.gateway.settings.stall_timeout_s * 1000:
                self._close(self._type.stalled)
                return
            silent_ms = 0.0
        else:
            silent_ms = now_ms - self._silent_since
            if now_ms - self._pinged_ms >= PING_EVERY_MS:
                self._pinged_ms = now_ms
                self._transport.write(PING)
        try:
            self._session.tick(now_ms, silent_ms)
        except CloseConnection as close:
            self._close(close)
        except Exception:
            self._break()

    def drain(self) -> None:
        """Let the dialect tell the client that the worker shuts down once its jobs have ended."""
        if self._session is not None:
            self._session.drain()

    def finish(self) -> None:
        """Send what is pending, then close."""
        if self._session is not None:
            self._finishing = True
            self._session.finish()
            self._wake()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Let go of the session."""
        self._end()
        super().connection_lost(error)

    def _break(self) -> None:
        """Close because of a bug of ours, which is being handled."""
        logger.exception("error in a WebSocket")
        self._close(BUG)

    def _close(self, close: CloseConnection) -> None:
        """Close with a code, unless the client was the first. What the session still had to say is not sent."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(close.code, close.reason)
        self._leave(b"".join(self._protocol.data_to_send()))

    def _leave(self, last: bytes) -> None:
        """Say the last word."""
        self._end()
        Farewell(self._house, self._peer, self._transport, last)

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
            self._house.gateway.disconnect(self)
