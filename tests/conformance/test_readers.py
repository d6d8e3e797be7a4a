"""Readers of one job: over WebSocket, over SSE, over one and then the other at any cursor, many, one stuck."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from socket import SO_RCVBUF, SOL_SOCKET
from socket import socket as plain_socket

import pytest

from tests.conformance.rawsocket import PING, encode, handshake, text
from tests.e2e.client import Reading, Socket, counting, expected_count, http, new_id, read_sse, split_cursor
from tests.e2e.test_slow_reader import _prove_blocked, _unsent_bytes
from tests.support.server import Server, serving

READERS, JOBS, LAST = 24, 16, 150


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker whose sockets buffer little."""
    with serving("--send-buffer-bytes", "4096") as running:
        yield running


async def test_websocket_then_sse_and_back_at_any_cursor(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        live = await socket.run(**counting(1, 12))
        job_id = live.frames[0]["job_id"]
        epoch, last = split_cursor(live.end["cursor"])
        assert epoch and last == live.number
        for place in range(1, len(live.frames)):
            onward, back = Reading(), Reading()
            for frame in live.frames[:place]:
                onward.take(frame)
                back.take(frame)
            await read_sse(client, job_id, onward)
            await read_sse(client, job_id, back, limit=1)
            if not back.ended:
                await socket.subscribe(job_id, back, after=back.cursor)
                await socket.finish(job_id)
            assert onward.story() == back.story() == live.story()


async def test_many_readers_of_a_running_job_see_the_same(server: Server) -> None:
    async with AsyncExitStack() as stack, http(server) as client:
        sockets = [await stack.enter_async_context(Socket(server)) for _ in range(READERS)]
        with server.frozen_engine():
            job_id = await sockets[0].create(**counting(1, LAST))
            for place, socket in enumerate(sockets[1:]):
                await socket.subscribe(job_id, **({"coalesce_ms": 50} if place % 2 else {}))
        streams = asyncio.gather(*(read_sse(client, job_id) for _ in range(READERS)))
        over_websocket = [pair[0] for pair in await asyncio.gather(*(socket.finish(job_id) for socket in sockets))]
        readings = [*over_websocket, *await streams]
    assert readings[0].text() == expected_count(1, LAST)
    assert all(reading.story() == readings[0].story() for reading in readings)


@asynccontextmanager
async def stuck(server: Server, ids: list[str]) -> AsyncIterator[tuple[plain_socket, int]]:
    """A WebSocket that follows jobs and never reads, and its port."""
    with plain_socket() as raw:
        raw.setsockopt(SOL_SOCKET, SO_RCVBUF, 2048)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", server.port))
        subscribes = [text(json.dumps({"type": "subscribe", "job_id": job_id})) for job_id in ids]
        await loop.sock_sendall(raw, handshake())
        # The worker takes frames only after its answer to the handshake.
        assert (await loop.sock_recv(raw, 16)).startswith(b"HTTP/1.1 101")
        await loop.sock_sendall(raw, b"".join(subscribes))
        yield raw, raw.getsockname()[1]


async def test_pings_of_a_client_that_does_not_read_do_not_hold_up_its_cancel(server: Server) -> None:
    """The answer to a ping cannot be sent, and must not be waited for: libraries ping by themselves."""
    async with Socket(server) as reader:
        with server.frozen_engine():
            ids = [await reader.create(**counting(1, LAST, job_id=new_id())) for _ in range(JOBS)]
        async with stuck(server, ids) as (raw, port):
            proof = asyncio.create_task(_prove_blocked(server, port, reader.readings[ids[0]]))
            while not proof.done():
                await reader.receive()
            await proof
            pings = encode(PING, b"are you there?") * 5
            cancels = b"".join(text(json.dumps({"type": "cancel", "job_id": job_id})) for job_id in ids)
            await asyncio.get_running_loop().sock_sendall(raw, pings + cancels)
            readings = await reader.finish(*ids)
            assert _unsent_bytes(server, port), "it was not stuck"
    assert {reading.end["status"] for reading in readings} == {"cancelled"}
