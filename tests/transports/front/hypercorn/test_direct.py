"""The fast path to the socket: its bytes are valid HTTP, and it still waits for a client that is slow."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import h11
import pytest
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import RawData

from tests.transports.front.served import serving

PIECES = [b"a", b"bc" * 40, b"d" * 5000, b"e" * 70_000]
PIECE_BYTES = 4000
PIECES_MAX = 100
"""How much a blocked writer may have sent: the buffers of both kernels, asyncio's, and a piece. 400 KB."""
PATIENCE_S = 10.0


async def begin(scope: Any, receive: Any, send: Any) -> None:
    """Begin an answer; the one at `/known` states its length."""
    await receive()
    size = str(sum(map(len, PIECES))).encode()
    headers = [(b"Content-Length", size)] if scope["path"] == "/known" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def message_of(piece: bytes, *, more_body: bool = True) -> dict[str, Any]:
    """Return the ASGI message of a piece of an answer."""
    return {"type": "http.response.body", "body": piece, "more_body": more_body}


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answer with all pieces: an ASGI application."""
    await begin(scope, receive, send)
    for piece in PIECES:
        await send(message_of(piece))
    await send(message_of(b"", more_body=False))


def request(method: str = "GET", path: str = "/", version: str = "1.1") -> bytes:
    """Return a request after which the connection ends."""
    return f"{method} {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


async def exchange(port: int, opening: bytes) -> bytes:
    """Send a request, and return everything received until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(opening)
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.close()


def body_of(method: str, path: str, raw: bytes) -> bytes:
    """Return the body of an answer, and assert that nothing follows it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target=path, headers=[("Host", "localhost"), ("Connection", "close")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    client.receive_data(b"")
    events = list(iter(client.next_event, h11.EndOfMessage()))
    assert client.trailing_data[0] == b""
    return b"".join(event.data for event in events if isinstance(event, h11.Data))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", ["/", "/known"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_is_one_that_http_knows(method: str, path: str, version: str) -> None:
    async with serving(answer) as front:
        raw = await exchange(front.port, request(method, path, version))
    assert body_of(method, path, raw) == (b"" if method == "HEAD" else b"".join(PIECES))
    assert raw.endswith(b"\r\n0\r\n\r\n") == ((method, path, version) == ("GET", "/", "1.1"))


class Flood:
    """An application that sends pieces for ever, each with its number."""

    def __init__(self) -> None:
        self.sent = 0
        self.since_s = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await begin(scope, receive, send)
        for number in itertools.count():
            await send(message_of(f"<{number}>".encode().ljust(PIECE_BYTES, b".")))
            self.sent, self.since_s = number + 1, asyncio.get_running_loop().time()
            await asyncio.sleep(0)

    async def wait_blocked(self) -> int:
        """Wait until it has waited for its client for a while; return how many pieces it has sent."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + PATIENCE_S
        while not self.sent or loop.time() - self.since_s < 0.2:
            assert loop.time() < deadline_s, f"{self.sent} pieces were sent"
            await asyncio.sleep(0.01)
        return self.sent


async def test_a_client_that_does_not_read_is_waited_for_and_misses_nothing() -> None:
    flood, loop = Flood(), asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        async with serving(flood) as front:
            await loop.sock_connect(client, ("127.0.0.1", front.port))
            await loop.sock_sendall(client, request())
            blocked_at = await flood.wait_blocked()
            assert blocked_at < PIECES_MAX
            read = b""
            while read.count(b"<") < 3 * blocked_at:
                read += await asyncio.wait_for(loop.sock_recv(client, 1 << 16), PATIENCE_S)
            client.close()
    places = [read.index(f"<{number}>".encode()) for number in range(3 * blocked_at)]
    assert places == sorted(places)


async def test_hypercorn_has_nothing_to_do_for_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would still work, and cost half as much again."""
    usual_path: list[bytes] = []
    protocol_send = TCPServer.protocol_send

    async def watched(self: TCPServer, event: Any) -> None:
        if isinstance(event, RawData):
            usual_path.append(event.data)
        await protocol_send(self, event)

    monkeypatch.setattr(TCPServer, "protocol_send", watched)
    async with serving(answer) as front:
        raw = await exchange(front.port, request())
    assert PIECES[1] in raw
    assert not any(PIECES[1] in data for data in usual_path)
