"""Reads many streams of a worker at once and records when text arrives. One task and one connection per stream."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import websockets

Body: TypeAlias = dict[str, object]
Read: TypeAlias = Callable[["Gathered"], Coroutine[None, None, None]]

FRAME_OF_TEXT = '"type":"token"'
FRAME_OF_END = '"type":"end"'


@dataclass
class Gathered:
    """The measurements of some streams together. `gaps_ms` lie between two frames with text of one stream."""

    tokens: int = 0
    wall_s: float = 0.0
    ttft_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)


class Stopwatch:
    """Records the tokens of one stream in `gathered`."""

    def __init__(self, gathered: Gathered) -> None:
        self._gathered = gathered
        self._begun = time.perf_counter()
        self._last: float | None = None

    def token(self) -> None:
        """Record that text arrived."""
        now = time.perf_counter()
        if self._last is None:
            self._gathered.ttft_ms.append((now - self._begun) * 1000)
        else:
            self._gathered.gaps_ms.append((now - self._last) * 1000)
        self._last = now

    def frame(self, message: str) -> bool:
        """Record a frame that arrived. Returns whether it is the last.

        Raises AssertionError unless the job completed: the figures would be wrong.
        """
        if FRAME_OF_TEXT in message:
            self.token()
        if FRAME_OF_END not in message:
            return False
        frame: dict[str, Any] = json.loads(message)
        assert frame["status"] == "completed", f"a job of the benchmark did not complete: {message}"
        self._gathered.tokens += frame["usage"]["completion_tokens"]
        return True


async def over_ws(url: str, bodies: list[Body]) -> Gathered:
    """Run one job on each of many WebSockets, which are opened before the clock starts."""
    sockets = [
        await websockets.connect(url.replace("http", "ws", 1) + "/v1/ws", compression=None, max_size=None, proxy=None)
        for _ in bodies
    ]
    try:
        return await _timed([partial(_read_ws, *pair) for pair in zip(sockets, bodies, strict=True)])
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))


async def over_sse(url: str, bodies: list[Body]) -> Gathered:
    """Run one job on each of many POST requests that stream their answer, on connections that are open already."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 80
    pairs = [await asyncio.open_connection(host, port) for _ in bodies]
    try:
        return await _timed(
            [partial(_read_sse, *pair, f"{host}:{port}", body) for pair, body in zip(pairs, bodies, strict=True)]
        )
    finally:
        for _, writer in pairs:
            writer.close()


async def _timed(reads: list[Read]) -> Gathered:
    gathered, begun = Gathered(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for read in reads:
            tasks.create_task(read(gathered))
    gathered.wall_s = time.perf_counter() - begun
    return gathered


async def _read_ws(socket: websockets.ClientConnection, body: Body, gathered: Gathered) -> None:
    watch = Stopwatch(gathered)
    await socket.send(json.dumps({"type": "create", "job_id": str(uuid.uuid4()), **body}))
    async for message in socket:
        assert isinstance(message, str)
        if watch.frame(message):
            return


async def _read_sse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, body: Body, gathered: Gathered
) -> None:
    watch = Stopwatch(gathered)
    data = json.dumps(body)
    writer.write(
        f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n{data}".encode()
    )
    # The sizes of HTTP's chunks are lines of their own, between whole events.
    while line := await reader.readline():
        if line.startswith(b"data: ") and watch.frame(line[6:].decode()):
            return
