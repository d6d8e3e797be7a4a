"""What delivery is compared with: the same tokens, from a ticker in the same process, on two common stacks.

`python -m tests.benchmarks.peers websockets`: the bare `websockets` server, Jobwire's frames encoded by msgspec.
`python -m tests.benchmarks.peers fastapi`: FastAPI on uvicorn, a pydantic-encoded chunk per token as SSE.

Each prints its port. A client names its pace in tokens per second, 0 for a stream on which nothing comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator

import msgspec
import websockets
from websockets.exceptions import ConnectionClosed

from tests.benchmarks.paced_engine import stamp


class TokenFrame(msgspec.Struct, frozen=True, tag="token"):
    """As Jobwire sends it."""

    job_id: str
    cursor: str
    text: str


class Ticker:
    """Puts a token into every queue, so many times a second."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[str]] = set()
        self._task: asyncio.Task[None] | None = None

    async def tokens(self, per_s: float) -> AsyncIterator[str]:
        """Follow the ticks, for as long as it is iterated."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        if per_s:
            self._queues.add(queue)
            if self._task is None:
                self._task = asyncio.create_task(self._tick(1 / per_s))
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)

    async def _tick(self, pace_s: float) -> None:
        next_s = time.monotonic()
        while self._queues:
            next_s = max(next_s + pace_s, time.monotonic())
            await asyncio.sleep(next_s - time.monotonic())
            text = stamp()
            for queue in self._queues:
                queue.put_nowait(text)
        self._task = None


async def run_websockets(listening: socket.socket) -> None:
    """Serve until killed."""
    ticker, encoder = Ticker(), msgspec.json.Encoder()

    async def serve(connection: websockets.ServerConnection) -> None:
        try:
            body = json.loads(await connection.recv())
        except ConnectionClosed:
            return
        job_id, n = body["job_id"], 0
        with contextlib.suppress(ConnectionClosed):
            async for text in ticker.tokens(float(body["prompt"].split()[0])):
                n += 1
                await connection.send(encoder.encode(TokenFrame(job_id, f"k3f9-{n}", text)), text=True)

    async with websockets.serve(serve, sock=listening, compression=None, ping_interval=None):
        await asyncio.Future()


async def run_fastapi(listening: socket.socket) -> None:
    """Serve until killed."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse
    from pydantic import BaseModel

    class Delta(BaseModel):
        content: str

    class Choice(BaseModel):
        index: int
        delta: Delta
        finish_reason: str | None = None

    class Chunk(BaseModel):
        id: str
        object: str = "chat.completion.chunk"
        created: int
        model: str
        choices: list[Choice]

    class Body(BaseModel):
        job_id: str
        prompt: str

    ticker, app = Ticker(), FastAPI()

    async def create(body: Body) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            async for text in ticker.tokens(float(body.prompt.split()[0])):
                choice = Choice(index=0, delta=Delta(content=text))
                chunk = Chunk(id=body.job_id, created=int(time.time()), model="clock", choices=[choice])
                yield f"data: {chunk.model_dump_json()}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    # FastAPI reads annotations by name, and these are of classes of this function.
    create.__annotations__ = {"body": Body}
    app.post("/v1/jobs")(create)
    await uvicorn.Server(
        uvicorn.Config(app, loop="asyncio", http="httptools", log_level="error", access_log=False)
    ).serve([listening])


def main() -> None:
    """Listen on a free port, say which, and serve."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listening.getsockname()[1], flush=True)
    run = {"websockets": run_websockets, "fastapi": run_fastapi}[sys.argv[1]]
    asyncio.run(run(listening))


if __name__ == "__main__":
    main()
