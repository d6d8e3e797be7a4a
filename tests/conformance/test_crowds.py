"""More than there is room for: floods of jobs, thousands of sockets. What is refused is told when to come back, what is
accepted is done, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conformance.rawsocket import RawSocket, closing, handshake, text
from tests.e2e.client import PATIENCE_S, Frame, Reading, Socket, counting, expected_count, http, new_id
from tests.e2e.raw import exchange, read_head, request
from tests.support.server import Server, serving, wait_until

FLOOD, QUEUE_JOBS_MAX, LAST = 1300, 500, 3
SOCKETS, ONE_IN = 2000, 40
KIB_PER_SOCKET_MAX = 60
MANY_FILES = 12_000
JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker with a short queue, and a client that may open enough files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(MANY_FILES, hard)), hard))
    try:
        with serving("--queue-jobs-max", str(QUEUE_JOBS_MAX), "--jobs-per-principal-max", "4096") as running:
            yield running
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_files(server: Server) -> int:
    """Files that the gateway has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def live_jobs(server: Server) -> int:
    """Jobs that have not ended."""
    return sum(job["state"] != "ended" for job in server.get("/v1/jobs").json()["jobs"])


def check_refusal(problem: Frame) -> None:
    """A full queue says so, and when to come back."""
    assert (problem["code"], problem["status"], problem["retriable"]) == ("queue_full", 429, True)
    assert problem["retry_after_ms"] > 0


async def flood_socket(socket: Socket, count: int) -> list[str]:
    """Send so many creates without a pause; return the jobs that were accepted."""
    ids = [new_id() for _ in range(count)]
    for job_id in ids:
        socket.readings[job_id] = Reading()
        await socket.send("create", **counting(1, LAST, job_id=job_id, ref=job_id))
    accepted: list[str] = []
    for job_id in ids:
        while True:
            frame = await socket.receive()
            if frame.get("ref") == job_id:
                break
        if frame["type"] == "accepted":
            accepted.append(job_id)
        else:
            check_refusal(frame["error"])
    return accepted


async def flood_http(server: Server, count: int) -> list[str]:
    """POST so many jobs, many at once; return the jobs that were accepted."""
    ids = [new_id() for _ in range(count)]
    work, accepted = iter(ids), []

    async def post() -> None:
        for job_id in work:
            body = json.dumps(counting(1, LAST, job_id=job_id)).encode()
            answer = await exchange(server, request("POST", "/v1/jobs", {**JSON, "Content-Type": JSON["Accept"]}, body))
            if answer.status == 200:
                accepted.append(job_id)
            else:
                assert answer.status == 429
                assert int(answer.headers["retry-after"]) >= 1
                check_refusal(json.loads(answer.body))

    await asyncio.gather(*(post() for _ in range(50)))
    return accepted


@pytest.mark.parametrize("sockets", [1, 13])
async def test_a_flood_of_creates_over_websocket(server: Server, sockets: int) -> None:
    files = open_files(server)
    async with AsyncExitStack() as stack, http(server) as client:
        crowd = [await stack.enter_async_context(Socket(server)) for _ in range(sockets)]
        with server.frozen_engine():
            flooding = asyncio.gather(*(flood_socket(socket, FLOOD // sockets) for socket in crowd))
            assert (await client.get("/health")).status_code == 200
            accepted = await flooding
            assert (await client.get("/health")).status_code == 200
        assert QUEUE_JOBS_MAX <= sum(map(len, accepted)) < FLOOD
        for socket, ids in zip(crowd, accepted, strict=True):
            for reading in await socket.finish(*ids) if ids else []:
                assert reading.text() == expected_count(1, LAST)
    wait_until("the connections to be gone", lambda: open_files(server) <= files + 2)
    assert live_jobs(server) == 0


async def test_a_flood_of_creates_over_http(server: Server) -> None:
    files = open_files(server)
    async with http(server) as other:
        with server.frozen_engine():
            flooding = asyncio.ensure_future(flood_http(server, FLOOD))
            assert (await other.get("/health")).status_code == 200
            accepted = await flooding
        assert QUEUE_JOBS_MAX <= len(accepted) < FLOOD
        async with Socket(server) as socket:
            for job_id in accepted:
                await socket.subscribe(job_id)
            texts = Counter(reading.text() for reading in await socket.finish())
    assert texts == {expected_count(1, LAST): len(accepted)}
    wait_until("the connections to be gone", lambda: open_files(server) <= files + 2)
    assert live_jobs(server) == 0


async def greeted(server: Server) -> tuple[RawSocket, asyncio.StreamWriter]:
    """A WebSocket that the worker has greeted, as light as can be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(handshake())
    status, _ = await asyncio.wait_for(read_head(reader), PATIENCE_S)
    assert status == 101
    socket = RawSocket(reader, writer)
    assert (await socket.json())["type"] == "hello"
    return socket, writer


async def test_thousands_of_sockets(server: Server, record_property: pytest.RecordProperty) -> None:
    files, before = open_files(server), server.rss_bytes()
    crowd: list[tuple[RawSocket, asyncio.StreamWriter]] = []
    try:
        for _ in range(0, SOCKETS, 100):
            crowd += await asyncio.gather(*(greeted(server) for _ in range(100)))
        assert open_files(server) > SOCKETS
        kib = (server.rss_bytes() - before) / SOCKETS / 1024
        print(f"{kib:.1f} KiB per connection, of {SOCKETS}")
        record_property("kib_per_connection", kib)
        await asyncio.gather(*(count(socket) for socket, _ in crowd[::ONE_IN]))
        assert server.get("/health").status_code == 200
        for socket, _ in crowd:
            socket.send(closing(1000))
        codes = Counter(await asyncio.gather(*(socket.close_code() for socket, _ in crowd)))
        assert codes == {1000: SOCKETS}
    finally:
        for _, writer in crowd:
            writer.transport.abort()
    wait_until("the connections to be gone", lambda: open_files(server) <= files + 2)
    assert kib < KIB_PER_SOCKET_MAX


async def count(socket: RawSocket) -> None:
    """Have a job counted, and read it to its end."""
    socket.send(text(json.dumps({"type": "create", **counting(1, 9, job_id=new_id())})))
    reading = Reading()
    while not reading.ended:
        frame = await socket.json()
        if frame["type"] != "pong":  # which says after a while without any other frame that the worker is there
            reading.take(frame)
    assert reading.text() == expected_count(1, 9)
