"""Clients that stop to read, or read slowly: they cost a cursor, not memory, and nobody else notices.

The clients here have the smallest receive buffer that the kernel grants, so that the server's writer blocks soon; that
it does is proved before anything is concluded from it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import PATIENCE_S, Reading, Socket, counting, expected_count, http, read_sse
from tests.server import Server, serving

JOBS, STALLED, LAST = 24, 24, 150
STALL_TIMEOUT_S = 2.0
ESTABLISHED = "01"
PROOF_S, PROOF_EVENTS = 0.5, 100


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker whose sockets buffer little."""
    with serving("--send-buffer-bytes", "4096") as running:
        yield running


async def _narrow(server: Server, **options: Any) -> Socket:
    """A connected WebSocket client with little room for what it has not read."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", server.port))
    return await Socket(server, sock=plain, max_queue=1, **options).__aenter__()


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
    stalled = [await _narrow(server) for _ in range(STALLED)]
    async with Socket(server) as reader, http(server) as client:
        # Once without them, so that memory that the load itself needs is there already.
        for _ in range(JOBS):
            await reader.create(**counting(1, LAST))
        await reader.finish()
        with server.frozen_engine():
            ids = [await reader.create(**counting(1, LAST)) for _ in range(JOBS)]
            for slow in stalled:
                for job_id in ids:
                    await slow.send("subscribe", job_id=job_id)
                slow.raw.transport.pause_reading()
        before = server.rss_bytes()
        finishing = asyncio.create_task(reader.finish(*ids))
        await _prove_blocked(server, _port(stalled[0]), reader.readings[ids[0]])
        readings = await finishing
        over_sse = await read_sse(client, ids[0])
        grown = server.rss_bytes() - before
        blocked = [_unsent_bytes(server, _port(slow)) for slow in stalled]
    assert {reading.text() for reading in readings} == {expected_count(1, LAST)}
    assert over_sse.text() == expected_count(1, LAST)
    # Frame by frame, each stalled reader would have been sent this much by now.
    stream_bytes = sum(len(str(frame)) for reading in readings for frame in reading.frames)
    assert all(blocked), f"some read on: {blocked}"
    assert grown < STALLED * stream_bytes / 4, f"{grown} bytes for {STALLED} readers of {stream_bytes}"
    for slow in stalled:
        await slow.cut()


async def test_a_stalled_client_is_still_heard(server: Server) -> None:
    """The read loop never waits for the write side: a cancel works from a client that does not read."""
    slow = await _narrow(server)
    async with Socket(server) as reader:
        with server.frozen_engine():
            ids = [await reader.create(**counting(1, 300)) for _ in range(JOBS)]
            for job_id in ids:
                await slow.send("subscribe", job_id=job_id)
            slow.raw.transport.pause_reading()
        reading = reader.readings[ids[0]]
        proof = asyncio.create_task(_prove_blocked(server, _port(slow), reading))
        while not proof.done():
            await reader.receive()
        await proof
        for job_id in ids:
            await slow.send("cancel", job_id=job_id)
        readings = await reader.finish(*ids)
    assert {reading.end["status"] for reading in readings} == {"cancelled"}
    await slow.cut()


async def test_a_slow_reader_gets_larger_frames_and_the_exact_text(server: Server) -> None:
    slow = await _narrow(server)
    async with Socket(server) as fast:
        with server.frozen_engine():
            ids = [await fast.create(**counting(1, LAST)) for _ in range(JOBS)]
            for job_id in ids:
                await slow.subscribe(job_id)
        finishing = asyncio.create_task(fast.finish(*ids))
        while not all(reading.ended for reading in slow.readings.values()):
            await slow.receive()
            # This is what slow means here: it keeps a frame for a while.
            await asyncio.sleep(0.002)
        quick = await finishing
    for job_id, reading in zip(ids, quick, strict=True):
        assert slow.readings[job_id].story() == reading.story()
        assert reading.text() == expected_count(1, LAST)
    frames = sum(len(reading.tokens) for reading in slow.readings.values())
    events = sum(frame.get("n", 1) for reading in slow.readings.values() for frame in reading.tokens)
    assert frames < events / 2, f"{events} tokens came in {frames} frames"
    await slow.cut()


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_stalled_reader_is_cut_off_and_may_resume(transport: str) -> None:
    flags = ("--send-buffer-bytes", "4096", "--stall-timeout-s", str(STALL_TIMEOUT_S))
    with serving(*flags) as server:
        async with Socket(server) as reader:
            ids = [await reader.create(**counting(1, 300)) for _ in range(JOBS)]
            opened = _stall_websocket if transport == "websocket" else _stall_sse
            port, close = await opened(server, ids)
            readings = await reader.finish(*ids)
            deadline = time.monotonic() + PATIENCE_S
            while _unsent_bytes(server, port) is not None:
                assert time.monotonic() < deadline, "the stalled client is still connected"
                # A reader in good health is not cut, however silent.
                await reader.ask("ping")
                await asyncio.sleep(0.1)
            close()
            assert {reading.text() for reading in readings} == {expected_count(1, 300)}
            again = await reader.subscribe(ids[0], after=readings[0].frames[3]["cursor"], reading=Reading(whole=False))
            await reader.finish(ids[0])
            assert again.end == readings[0].end


async def _stall_websocket(server: Server, ids: list[str]) -> tuple[int, Any]:
    slow = await _narrow(server)
    for job_id in ids:
        await slow.send("subscribe", job_id=job_id)
    slow.raw.transport.pause_reading()
    return _port(slow), slow.raw.transport.abort


async def _stall_sse(server: Server, ids: list[str]) -> tuple[int, Any]:
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    plain.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(plain, ("127.0.0.1", server.port))
    # Pipelined requests, so that one connection has enough to carry.
    head = "Host: localhost\r\nAccept: text/event-stream\r\n\r\n"
    await loop.sock_sendall(plain, "".join(f"GET /v1/jobs/{id_}/stream HTTP/1.1\r\n{head}" for id_ in ids).encode())
    port: int = plain.getsockname()[1]
    return port, plain.close
