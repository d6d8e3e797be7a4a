"""A WebSocket client written by hand, byte by byte: sends what libraries refuse to, shows what comes back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from websockets.frames import apply_mask

from tests.e2e.client import PATIENCE_S, Frame
from tests.e2e.raw import read_head
from tests.support.server import Server

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x37\xfa\x21\x3d"
KEY = base64.b64encode(b"0123456789abcdef").decode()
ACCEPT = base64.b64encode(hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
UPGRADE = {
    "Host": "localhost",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}


def handshake(changes: Mapping[str, str | None] | None = None, first: str = "GET /v1/ws HTTP/1.1") -> bytes:
    """An opening handshake; in `changes` None leaves a header out."""
    headers = {**UPGRADE, **(changes or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    return f"{first}\r\n{lines}\r\n".encode()


def masked(payload: bytes) -> bytes:
    """Payload under MASK, which comes first."""
    return MASK + apply_mask(payload, MASK)


def encode(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bool = True,
    declared: int | None = None,
    length_bytes: int | None = None,
) -> bytes:
    """One frame. `declared` is what it says of its length, `length_bytes` in how many bytes (0, 2 or 8)."""
    size = len(payload) if declared is None else declared
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 1 << 16 else 8
    marker = {0: size, 2: 126, 8: 127}[length_bytes]
    length = {0: b"", 2: struct.pack("!H", size) if length_bytes == 2 else b"", 8: struct.pack("!Q", size)}[
        length_bytes
    ]
    head = bytes([fin << 7 | rsv << 4 | opcode, mask << 7 | marker])
    return head + length + (masked(payload) if mask else payload)


def text(message: str) -> bytes:
    """A text message in one frame."""
    return encode(TEXT, message.encode())


def closing(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return encode(CLOSE, struct.pack("!H", code) + reason)


@dataclass(frozen=True)
class Seen:
    """One frame of the server."""

    opcode: int
    payload: bytes

    @property
    def code(self) -> int | None:
        """The code of a close frame; None of one without."""
        assert self.opcode == CLOSE, self
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None


class RawSocket:
    """A connection that is a WebSocket already. The server's frames must be whole, plain and not masked."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *frames: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(b"".join(frames))

    async def drain(self) -> None:
        """Wait until what was sent is out."""
        await asyncio.wait_for(self._writer.drain(), PATIENCE_S)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._writer.write_eof()

    async def frame(self) -> Seen:
        """Return the next frame, pings of the server left out."""
        while True:
            seen = await asyncio.wait_for(self._frame(), PATIENCE_S)
            if seen.opcode != PING:
                return seen

    async def _frame(self) -> Seen:
        first, second = await self._reader.readexactly(2)
        assert first & 0x80 and not first & 0x70, f"the server fragments or sets RSV bits: {first:08b}"
        assert not second & 0x80, "the server masks"
        size = second
        if second == 126:
            (size,) = struct.unpack("!H", await self._reader.readexactly(2))
        elif second == 127:
            (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
        return Seen(first & 0x0F, await self._reader.readexactly(size))

    async def json(self) -> Frame:
        """Return the next frame, which must be a text message with JSON."""
        seen = await self.frame()
        assert seen.opcode == TEXT, seen
        frame: Frame = json.loads(seen.payload)
        return frame

    async def close_code(self) -> int | None:
        """Read up to the server's close frame and the end of the connection; return the code."""
        while (seen := await self.frame()).opcode != CLOSE:
            assert seen.opcode in (TEXT, PONG), seen
        assert await self.rest() == b"", "something follows the close frame"
        return seen.code

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection."""
        return await asyncio.wait_for(self._reader.read(), PATIENCE_S)


@asynccontextmanager
async def raw_connection(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection for the length of a `with` block, then gone without a goodbye."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def raw_socket(server: Server, changes: Mapping[str, str | None] | None = None) -> AsyncIterator[RawSocket]:
    """A WebSocket that has been greeted."""
    async with raw_connection(server) as (reader, writer):
        writer.write(handshake(changes))
        status, headers = await asyncio.wait_for(read_head(reader), PATIENCE_S)
        assert status == 101
        assert headers["upgrade"].lower() == "websocket"
        assert headers["connection"].lower() == "upgrade"
        assert headers["sec-websocket-accept"] == ACCEPT
        socket = RawSocket(reader, writer)
        assert (await socket.json())["type"] == "hello"
        yield socket
