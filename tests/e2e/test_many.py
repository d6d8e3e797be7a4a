"""Many jobs at a time, on one socket, on many, and over SSE: every count is exact."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tests.e2e.client import Socket, counting, expected_count, http, new_id, post_stream
from tests.support.server import Server

JOBS = 64


async def test_64_jobs_on_one_socket(server: Server) -> None:
    async with Socket(server) as socket:
        with server.frozen_engine():
            for _ in range(JOBS):
                await socket.create(**counting())
        readings = await socket.finish()
    assert len(readings) == JOBS
    assert {reading.text() for reading in readings} == {expected_count(1, 60)}


async def test_64_jobs_on_64_sockets(server: Server) -> None:
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(Socket(server)) for _ in range(JOBS)]
        readings = await asyncio.gather(*(socket.run(**counting()) for socket in sockets))
    assert {reading.text() for reading in readings} == {expected_count(1, 60)}


async def test_32_jobs_over_sse_beside_32_on_a_socket(server: Server) -> None:
    lasts = range(20, 20 + JOBS // 2)
    async with Socket(server) as socket, http(server) as client:
        for last in lasts:
            await socket.create(**counting(1, last))
        over_sse = asyncio.gather(*(post_stream(client, **counting(1, last)) for last in lasts))
        over_websocket, streams = await socket.finish(), await over_sse
    expected = [expected_count(1, last) for last in lasts]
    assert [reading.text() for reading in over_websocket] == expected
    assert [reading.text() for reading in streams] == expected


async def test_jobs_of_different_length_share_a_socket_without_mixing(server: Server) -> None:
    ranges = [(first, first + length) for first in (1, 30, 77) for length in (0, 1, 9, 45, 90)]
    async with Socket(server) as socket:
        ids = [await socket.create(**counting(*pair)) for pair in ranges]
        readings = await socket.finish(*ids)
    assert [reading.text() for reading in readings] == [expected_count(*pair) for pair in ranges]


async def test_a_burst_of_creates_is_answered_in_order(server: Server) -> None:
    """Nothing is awaited between the frames: replies come in the order of the requests."""
    async with Socket(server) as socket:
        ids = [new_id() for _ in range(20)]
        for number, job_id in enumerate(ids):
            await socket.send("create", **counting(1, 3, job_id=job_id, ref=str(number)))
            await socket.send("ping", ref=f"ping {number}")
        replies: list[str] = []
        ended: set[str] = set()
        while len(ended) < len(ids):
            frame = await socket.receive()
            if "ref" in frame:
                replies.append(frame["ref"])
            elif frame["type"] == "end":
                ended.add(frame["job_id"])
    assert replies == [text for number in range(20) for text in (str(number), f"ping {number}")]
