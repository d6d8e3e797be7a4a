"""The connection is cut at every byte: of what the client says, and of what the worker says, over WebSocket and SSE.

After each cut a client does what the protocol tells it, and has in the end what one saw that was never cut: the same
text, an unbroken row of cursors, one end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from tests.conformance.cutting import Cut, CuttingProxy, proxied
from tests.conformance.rawsocket import TEXT, RawSocket, encode, handshake
from tests.e2e.client import PATIENCE_S, Frame, Reading, Socket, counting, expected_count, new_id
from tests.e2e.raw import read_head
from tests.support.server import Server

LAST = 4
HELLO_BYTES = 400
"""Headers and hello are longer than this, and each cut in them is like the other: here it is every 16th byte."""

AT_ONCE = 16
"""Cuts that are tried at the same time, each through a proxy of its own."""


async def websocket_frames(port: int, job: Frame, after: str | None) -> AsyncGenerator[Frame, None]:
    """Connect, create (again), and yield what comes until the connection is lost."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(handshake())
        await read_head(reader)
        resumed = {} if after is None else {"after": after}
        writer.write(encode(TEXT, json.dumps({"type": "create", **job, **resumed}).encode()))
        socket = RawSocket(reader, writer)
        while True:
            frame = await socket.json()
            if frame["type"] in ("accepted", "token", "narration", "end"):
                yield frame
            else:
                assert frame["type"] in ("hello", "pong"), frame
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.transport.abort()


async def event_frames(port: int, job: Frame, after: str | None) -> AsyncGenerator[Frame, None]:
    """POST (again), and yield the whole events that come until the connection is lost."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(job)
    head = "Host: localhost\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
    head += "" if after is None else f"Last-Event-ID: {after}\r\n"
    try:
        writer.write(f"POST /v1/jobs HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        status, _ = await read_head(reader)
        assert status == 200
        events = b""
        while data := await reader.read(65_536):
            # An event counts when it is whole. The sizes of HTTP's chunks are lines of their own, between events.
            *whole, events = (events + data).split(b"\n\n")
            for line in b"\n".join(whole).split(b"\n"):
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.transport.abort()


TRANSPORTS = {"websocket": websocket_frames, "sse": event_frames}


async def read_through(proxy: CuttingProxy, transport: str, job: Frame, cut: Cut) -> Reading:
    """Read a job through a connection that is cut, then through one that is not."""
    reading, port, server_port = Reading(), proxy.port, proxy.server_port
    proxy.cut = cut
    for _ in range(2):
        async with asyncio.timeout(PATIENCE_S):
            async with aclosing(TRANSPORTS[transport](port, job, reading.cursor)) as frames:
                async for frame in frames:
                    reading.take(frame)
                    if reading.ended:
                        return reading
        port = server_port
    raise AssertionError(f"no end after {cut}: {reading.frames[-2:]}")


async def read_all(server: Server, transport: str, jobs: list[Frame], cuts: list[Cut]) -> list[Reading]:
    """Try all cuts, several at a time; each reads the job of its place."""
    work = iter(list(zip(jobs, cuts, strict=True)))
    readings: list[Reading] = []

    async def some() -> None:
        async with proxied(server) as proxy:
            for job, cut in work:
                readings.append(await read_through(proxy, transport, job, cut))

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return readings


async def uncut(server: Server, transport: str, job: Frame) -> tuple[Reading, int, int]:
    """Read a job without a cut; return the reading and how many bytes went up and came down."""
    async with proxied(server) as proxy:
        reading = await read_through(proxy, transport, job, Cut())
        up, down = proxy.passed
    return reading, up, down


async def finished(server: Server) -> tuple[Frame, Reading]:
    """A job that has ended, and how a client saw it run."""
    job = counting(1, LAST, job_id=new_id())
    async with Socket(server) as socket:
        return job, await socket.run(**job)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cut_at_any_byte_of_what_the_worker_says(server: Server, transport: str) -> None:
    job, live = await finished(server)
    whole, _, down = await uncut(server, transport, job)
    assert whole.text() == expected_count(1, LAST)
    assert whole.story() == live.story()
    offsets = [*range(0, HELLO_BYTES, 16), *range(HELLO_BYTES, down)]
    readings = await read_all(server, transport, [job] * len(offsets), [Cut(down=at) for at in offsets])
    assert len(readings) == len(offsets) > 500
    for reading in readings:
        assert reading.story() == live.story()
        assert reading.resets == 0


@pytest.mark.timeout(400)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cut_at_any_byte_of_what_the_client_says(server: Server, transport: str) -> None:
    """The first job tells the length; then each cut has a job of its own, which runs once or not at all before it."""
    _, up, _ = await uncut(server, transport, counting(1, LAST, job_id=new_id()))
    jobs = [counting(1, LAST, job_id=new_id()) for _ in range(up)]
    readings = await read_all(server, transport, jobs, [Cut(up=at) for at in range(up)])
    assert len(readings) == up > 200
    for reading in readings:
        assert reading.text() == expected_count(1, LAST)
        assert reading.actions.count("admitted") == 1


@pytest.mark.timeout(400)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_cuts_while_the_job_runs(server: Server, transport: str) -> None:
    """Every 97th byte of a live stream."""
    _, _, down = await uncut(server, transport, counting(1, 40, job_id=new_id()))
    cuts = [Cut(down=at) for at in range(50, down, 97)]
    jobs = [counting(1, 40, job_id=new_id()) for _ in cuts]
    readings = await read_all(server, transport, jobs, cuts)
    for reading in readings:
        assert reading.text() == expected_count(1, 40)
        assert reading.end["status"] == "completed"
