"""HTTP over a plain socket, byte by byte: for requests that no client library would send, and answers as they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from tests.e2e.client import PATIENCE_S
from tests.support.server import Server


@dataclass(frozen=True)
class Answer:
    """An answer: header names in lower case, the chunks of a chunked body, or the body as one chunk."""

    status: int
    headers: dict[str, str]
    chunks: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks)


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request that asks the server to close afterwards."""
    fields = {"Host": "localhost", "Connection": "close"}
    fields |= {"Content-Length": str(len(body))} if body else {}
    fields |= headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def exchange(server: Server, sent: bytes) -> Answer:
    """Send bytes on a new connection and return the one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(sent)
        return await asyncio.wait_for(read_answer(reader), PATIENCE_S)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer."""
    status, headers = await read_head(reader)
    if status in (101, 204):
        return Answer(status, headers, ())
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, tuple([chunk async for chunk in _chunks(reader)]))
    length = headers.get("content-length")
    body = await (reader.read() if length is None else reader.readexactly(int(length)))
    return Answer(status, headers, (body,))


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the status and the headers of an answer."""
    first, headers = await read_request(reader)
    return int(first.split()[1]), headers


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str]]:
    """Read the first line and the headers of a request."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
    pairs = (line.decode("latin-1").partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
