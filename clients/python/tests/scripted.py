"""Scripted workers for the tests, which misbehave on purpose, over real sockets.

The behaviour of the real worker is tested in tests/clients. Here a script decides what each connection sees.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

Frame: TypeAlias = dict[str, Any]
LIMITS = {"heartbeat_s": 15, "max_frame_bytes": 1 << 20}
UNTIL_CLOSED_S = 20.0


class Peer:
    """The worker's end of one WebSocket connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            await self.socket.send(json.dumps(frame))

    async def receive(self, kind: str | None = None) -> Frame:
        """Wait for the next frame, which must be of this type if one is given."""
        frame: Frame = json.loads(await self.socket.recv())
        assert kind in (None, frame["type"]), frame
        return frame

    async def accept(self, kind: str = "create", **more: Any) -> Frame:
        """Wait for a request of this type and accept it; return the request."""
        request = await self.receive(kind)
        accepted = {"type": "accepted", "job_id": request["job_id"], "ref": request["ref"], "state": "running"}
        await self.send({**accepted, **more})
        return request

    async def refuse(self, request: Frame, code: str, status: int, **more: Any) -> None:
        """Answer a request with an error."""
        problem = {"code": code, "status": status, "title": code, "detail": f"Refused: {code}", "retriable": False}
        await self.send({"type": "error", "ref": request["ref"], "error": {**problem, **more}})

    async def cut(self, half: bytes = b"") -> None:
        """End the TCP connection without a close frame, after some bytes of a frame."""
        self.socket.transport.write(half)
        self.socket.transport.close()
        await self.socket.wait_closed()

    async def wait_closed(self) -> None:
        await asyncio.wait_for(self.socket.wait_closed(), UNTIL_CLOSED_S)


Script: TypeAlias = Callable[[Peer], Awaitable[None]]


@dataclass
class ScriptedWorker:
    """What the scripted worker has seen: `connections` counts them, `failures` are those of the scripts."""

    url: str = ""
    connections: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    subprotocols: list[str | None] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


@asynccontextmanager
async def scripted_worker(
    *scripts: Script, hello: Frame | None = None, greets: bool = True
) -> AsyncIterator[ScriptedWorker]:
    """Serve WebSocket connections: the first by the first script and so on, the last script serves all the rest."""
    worker = ScriptedWorker()

    async def handle(socket: ServerConnection) -> None:
        script = scripts[min(worker.connections, len(scripts) - 1)]
        worker.connections += 1
        assert socket.request is not None
        worker.headers.append(dict(socket.request.headers.raw_items()))
        worker.subprotocols.append(socket.subprotocol)
        try:
            peer = Peer(socket)
            if greets:
                await peer.send({"type": "hello", "protocol": "jobwire.v1", "limits": LIMITS, **(hello or {})})
            await script(peer)
        except ConnectionClosed:
            pass  # the client left; what it has seen is for the test to judge
        except BaseException as failure:
            worker.failures.append(failure)
            await socket.close(4400, "the script failed")  # which the client does not retry

    subprotocols = [Subprotocol("jobwire.v1")]
    async with serve(handle, "127.0.0.1", 0, subprotocols=subprotocols, ping_interval=None, close_timeout=1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        worker.url = f"http://127.0.0.1:{port}"
        try:
            yield worker
        finally:
            if worker.failures:
                raise worker.failures[0]


@dataclass
class Exchange:
    """One HTTP request that the scripted worker got, and the socket to answer on. Every answer closes it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Frame
    writer: asyncio.StreamWriter

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()

    async def answer_json(self, status: int, body: Frame, **headers: str) -> None:
        await self.answer(status, json.dumps(body).encode(), Content_Type="application/json", **headers)

    async def stream(self, *pieces: bytes) -> None:
        """Answer with an event stream of these pieces, which ends without an end: a cut."""
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            await self.send(piece)

    async def send(self, piece: bytes) -> None:
        """Send another piece of the stream."""
        self.writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await self.writer.drain()

    async def finish(self) -> None:
        """End the stream as HTTP wants it."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()


HttpScript: TypeAlias = Callable[[Exchange], Awaitable[None]]


@asynccontextmanager
async def scripted_http(*scripts: HttpScript) -> AsyncIterator[tuple[str, list[Exchange]]]:
    """Serve HTTP requests, each by the next script; yield the URL and the requests so far."""
    exchanges: list[Exchange] = []
    failures: list[BaseException] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            exchange = await _read_request(reader, writer)
            assert len(exchanges) < len(scripts), f"unexpected request: {exchange.method} {exchange.path}"
            exchanges.append(exchange)
            await scripts[len(exchanges) - 1](exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        except BaseException as failure:
            failures.append(failure)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", exchanges
        finally:
            for exchange in exchanges:
                exchange.writer.transport.abort()  # from Python 3.12 on the server waits for its connections
            if failures:
                raise failures[0]


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    request, *lines = head.strip().split("\r\n")
    method, path, _ = request.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Exchange(method, path, headers, json.loads(body) if body else {}, writer)
