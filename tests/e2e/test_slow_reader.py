"""Clients that stop to read, or read slowly: they cost a cursor, not memory, and nobody else notices.

The clients here have the smallest receive buffer that the kernel grants, so that the server's writer blocks soon; that
it does is proved before anything is concluded from it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.client import PATIENCE_S, Reading, Socket, counting, expected_count, http, read_sse
from tests.support.server import Server, serving

JOBS, STALLED, LAST = 16, 32, 150
STALL_TIMEOUT_S = 2.0
RECEIVE_BYTES = 2048
# What a blocked writer may hold of a client, and the log of a token.
BUFFERED_BYTES, LOG_BYTES_PER_EVENT = 128 << 10, 512
ESTABLISHED = "01"
Stalled: TypeAlias = Callable[[Server, list[str]], AbstractAsyncContextManager[int]]
PROOF_S, PROOF_EVENTS = 0.3, 50


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker whose sockets buffer little."""
    with serving("--send-buffer-bytes", "4096") as running:
        yield running


async def _connect(server: Server) -> socket.socket:
    """A connection with little room for what was not read."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", server.port))
    return plain


@asynccontextmanager
async def _narrow(server: Server) -> AsyncIterator[Socket]:
    """A WebSocket client over such a connection, which is lost in the end."""
    client = await Socket(server, sock=await _connect(server), max_queue=1).__aenter__()
    try:
        yield client
    finally:
        await client.cut()


async def _stall(client: Socket, ids: list[str]) -> None:
    """Follow jobs and never read what comes."""
    for job_id in ids:
        await client.send("subscribe", job_id=job_id)
    client.raw.transport.pause_reading()


def _port(client: Socket) -> int:
    port: int = client.raw.local_address[1]
    return port


def _unsent_bytes(server: Server, client_port: int) -> int | None:
    """What the server's kernel holds for a client; None when the connection is gone."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state, queues = line.split()[1:5]
        ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        if ports == (server.port, client_port) and state == ESTABLISHED:
            return int(queues.partition(":")[0], 16)
    return None


async def _prove_blocked(server: Server, client_port: int, witness: Reading) -> None:
    """Wait until the server can send nothing more to a client, while another reader of its jobs goes on."""
    deadline, since, unsent, number = time.monotonic() + PATIENCE_S, time.monotonic(), None, 0
    while True:
        now = _unsent_bytes(server, client_port)
        if not now or now != unsent:
            since, unsent, number = time.monotonic(), now, witness.number
        elif time.monotonic() - since >= PROOF_S and witness.number - number >= PROOF_EVENTS:
            return
        assert time.monotonic() < deadline, f"{now} bytes wait for a client that should be stalled"
        await asyncio.sleep(0.02)


async def test_stalled_readers_cost_no_memory_and_disturb_nobody(server: Server) -> None:
    async with Socket(server) as reader, http(server) as client, AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(_narrow(server)) for _ in range(STALLED)]
        # Once without them, so that memory that the load itself needs is there already.
        for _ in range(JOBS):
            await reader.create(**counting(1, 20))
        await reader.finish()
        with server.frozen_engine():
            ids = [await reader.create(**counting(1, LAST)) for _ in range(JOBS)]
            for slow in stalled:
                await _stall(slow, ids)
        before = server.rss_bytes()
        finishing = asyncio.create_task(reader.finish(*ids))
        await _prove_blocked(server, _port(stalled[0]), reader.readings[ids[0]])
        readings = await finishing
        over_sse = await read_sse(client, ids[0])
        grown = server.rss_bytes() - before
        blocked = [_unsent_bytes(server, _port(slow)) for slow in stalled]
    assert {reading.text() for reading in readings} == {expected_count(1, LAST)}
    assert over_sse.text() == expected_count(1, LAST)
    assert all(blocked), f"some read on: {blocked}"
    events = sum(reading.number for reading in readings)
    allowed = events * LOG_BYTES_PER_EVENT + STALLED * BUFFERED_BYTES
    # What was not sent to all of them by now, token by token, is more than twice that.
    assert 2 * allowed < STALLED * events * len(json.dumps(readings[0].tokens[0]))
    assert grown < allowed, f"{grown} bytes more, of {allowed}"


async def test_a_stalled_client_is_still_heard(server: Server) -> None:
    """The read loop never waits for the write side: a cancel works from a client that does not read."""
    async with Socket(server) as reader, _narrow(server) as slow:
        with server.frozen_engine():
            ids = [await reader.create(**counting(1, LAST)) for _ in range(JOBS)]
            await _stall(slow, ids)
        reading = reader.readings[ids[0]]
        proof = asyncio.create_task(_prove_blocked(server, _port(slow), reading))
        while not proof.done():
            await reader.receive()
        await proof
        for job_id in ids:
            await slow.send("cancel", job_id=job_id)
        readings = await reader.finish(*ids)
    assert {reading.end["status"] for reading in readings} == {"cancelled"}


async def test_a_slow_reader_gets_larger_frames_and_the_exact_text(server: Server) -> None:
    async with Socket(server) as fast, _narrow(server) as slow:
        with server.frozen_engine():
            ids = [await fast.create(**counting(1, LAST)) for _ in range(JOBS)]
            for job_id in ids:
                await slow.subscribe(job_id)
        # The slow one reads a little, then not until the fast one has everything, then on.
        await slow.until(lambda: sum(len(reading.tokens) for reading in slow.readings.values()) >= JOBS)
        slow.raw.transport.pause_reading()
        quick = await fast.finish(*ids)
        slow.raw.transport.resume_reading()
        await slow.finish(*ids)
    for job_id, reading in zip(ids, quick, strict=True):
        assert slow.readings[job_id].story() == reading.story()
        assert reading.text() == expected_count(1, LAST)
    frames = sum(len(reading.tokens) for reading in slow.readings.values())
    events = sum(frame.get("n", 1) for reading in slow.readings.values() for frame in reading.tokens)
    assert frames < events / 2, f"{events} tokens came in {frames} frames"


@asynccontextmanager
async def _stalled_stream(server: Server, ids: list[str]) -> AsyncIterator[int]:
    """The port of an HTTP client that reads nothing. Its requests are pipelined: there is enough to carry for one."""
    with await _connect(server) as plain:
        head = "Host: localhost\r\nAccept: text/event-stream\r\n\r\n"
        requests = "".join(f"GET /v1/jobs/{job_id}/stream HTTP/1.1\r\n{head}" for job_id in ids)
        await asyncio.get_running_loop().sock_sendall(plain, requests.encode())
        yield plain.getsockname()[1]


@asynccontextmanager
async def _stalled_socket(server: Server, ids: list[str]) -> AsyncIterator[int]:
    """The port of a WebSocket client that reads nothing."""
    async with _narrow(server) as slow:
        await _stall(slow, ids)
        yield _port(slow)


@pytest.mark.parametrize("stalled", [_stalled_socket, _stalled_stream])
async def test_a_stalled_reader_is_cut_off_and_may_resume(stalled: Stalled) -> None:
    flags = ("--send-buffer-bytes", "4096", "--stall-timeout-s", str(STALL_TIMEOUT_S))
    with serving(*flags) as server:
        async with Socket(server) as reader:
            ids = [await reader.create(**counting(1, LAST)) for _ in range(JOBS)]
            async with stalled(server, ids) as port:
                readings = await reader.finish(*ids)
                deadline = time.monotonic() + PATIENCE_S
                while _unsent_bytes(server, port) is not None:
                    assert time.monotonic() < deadline, "the stalled client is still connected"
                    # A reader in good health is not cut, however silent.
                    await reader.ask("ping")
                    await asyncio.sleep(0.1)
            assert {reading.text() for reading in readings} == {expected_count(1, LAST)}
            again = await reader.subscribe(ids[0], Reading(whole=False), after=readings[0].frames[3]["cursor"])
            await reader.finish(ids[0])
            assert again.end == readings[0].end


async def test_a_stalled_client_that_reads_again_learns_why_it_was_given_up() -> None:
    flags = ("--send-buffer-bytes", "4096", "--stall-timeout-s", str(STALL_TIMEOUT_S))
    with serving(*flags) as server:
        async with Socket(server) as reader, _narrow(server) as slow:
            with server.frozen_engine():
                ids = [await reader.create(**counting(1, LAST)) for _ in range(JOBS)]
                await _stall(slow, ids)
            finishing = asyncio.create_task(reader.finish(*ids))
            await _prove_blocked(server, _port(slow), reader.readings[ids[0]])
            # To stay away for so long is what is tested; nothing can be seen of it from outside.
            await asyncio.sleep(STALL_TIMEOUT_S + 0.5)
            slow.raw.transport.resume_reading()
            slow.readings = {job_id: Reading() for job_id in ids}
            with pytest.raises(ConnectionClosed):
                while True:
                    await slow.receive()
            assert slow.raw.close_code == 4504
            assert "resume" in (slow.raw.close_reason or "")
            readings = await finishing
            assert not any(reading.ended for reading in slow.readings.values())
            # What came is whole, and the rest is there.
            for job_id in ids:
                read = slow.readings[job_id]
                await reader.subscribe(job_id, read, **({"after": read.cursor} if read.cursor else {}))
            await reader.finish(*ids)
            assert [read.story() for read in slow.readings.values()] == [told.story() for told in readings]
