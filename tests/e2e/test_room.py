"""Who has room: connections with a key and without one, and what happens when files run out."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.conformance.rawsocket import handshake
from tests.e2e.client import Socket, counting, expected_count, http, post_job
from tests.e2e.raw import read_head
from tests.support.server import Server, cpu_s, serving, wait_until

KEY = "sixteen-characters-or-more"
ENV = {"JOBWIRE_API_KEY": KEY}
SHOWN = {"Authorization": f"Bearer {KEY}"}
KNOWN_MAX, KEYLESS_MAX = 6, 4
LIMITS = ("--connections-max", str(KNOWN_MAX), "--connections-keyless-max", str(KEYLESS_MAX))

FILES = 128
SILENT = 140
HEADS = {
    "silent": b"",
    "half a request": b"GET /health HTTP/1.1\r\n",
    "waits for auth": handshake(),
    "refused handshake": handshake({"Sec-WebSocket-Version": "12"}),
    "slow body": b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
    b"Content-Type: application/json\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n",
}
"""What 140 clients send before they are silent."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker with a key and room for few."""
    with serving(*LIMITS, "--auth-timeout-s", "60", env=ENV) as running:
        yield running


@contextmanager
def _held(server: Server, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    """Connections on which something was sent, open for the length of a `with` block."""
    with ExitStack() as stack:
        held = []
        for _ in range(count):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)))
            held[-1].sendall(sent)
        yield held


def _stats(server: Server) -> tuple[int, int]:
    """How many connections are known, the one that asks left out, and how many keyless."""
    stats = server.get("/v1/stats", headers=SHOWN).json()
    return stats["connections_known"] - 1, stats["connections_keyless"]


def _evicted(server: Server) -> float:
    lines = server.get("/metrics", headers=SHOWN).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("jobwire_connections_evicted_total"))


@pytest.mark.parametrize("name", ["silent", "half a request", "waits for auth"])
async def test_connections_without_a_key_take_no_room_of_those_who_have_one(server: Server, name: str) -> None:
    before = _evicted(server)
    with _held(server, HEADS[name], 5 * KNOWN_MAX):
        async with Socket(server, additional_headers=SHOWN) as known, http(server, headers=SHOWN) as client:
            assert (await known.run(**counting(1, 9))).text() == expected_count(1, 9)
            assert await post_job(client, **counting(1, 3))
            assert (await client.get("/health")).status_code == 200
            known_now, keyless = _stats(server)
            assert known_now == 2
            assert keyless <= KEYLESS_MAX
        assert _evicted(server) - before >= 5 * KNOWN_MAX - KEYLESS_MAX


async def test_the_quietest_goes_and_not_one_that_has_shown_its_key(server: Server) -> None:
    async with AsyncExitStack() as stack:
        known = await stack.enter_async_context(Socket(server, additional_headers=SHOWN))
        # A page sends its key in a frame.
        page = await connect(server.ws_url, proxy=None)
        stack.push_async_callback(page.close)
        await page.recv()
        await page.send('{"type":"auth","token":"' + KEY + '"}')
        assert '"auth":"ok"' in await page.recv()
        with _held(server, HEADS["half a request"], 3 * KEYLESS_MAX) as held:
            assert _stats(server)[0] == 2
            held[0].settimeout(10)
            with pytest.raises((ConnectionResetError, ConnectionAbortedError)):
                assert held[0].recv(1) == b""
                raise ConnectionAbortedError
        assert (await known.ask("ping"))["type"] == "pong"
        await page.send('{"type":"ping"}')
        assert '"pong"' in await page.recv()


async def test_plain_requests_count_and_a_surplus_is_told_so(server: Server) -> None:
    def known() -> int:
        return _stats(server)[0]

    await asyncio.to_thread(wait_until, "the room to be empty", lambda: known() == 0)
    ask = b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    async with AsyncExitStack() as stack:
        for _ in range(KNOWN_MAX - 1):
            await stack.enter_async_context(Socket(server, additional_headers=SHOWN))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        stack.callback(writer.close)
        writer.write(ask)
        assert (await read_head(reader))[0] == 200
        # All room is taken, the last of it by a plain request. Without a key one still gets an answer.
        async with http(server) as client:
            surplus = await client.get("/v1/jobs", headers={**SHOWN, "Accept": "application/json"})
            assert (surplus.status_code, surplus.json()["code"]) == (503, "overloaded")
            assert int(surplus.headers["retry-after"]) >= 1
            assert (await client.get("/health")).status_code == 200
        for headers, first in ((SHOWN, None), ({}, '{"type":"auth","token":"' + KEY + '"}')):
            late = await connect(server.ws_url, proxy=None, additional_headers=headers)
            with pytest.raises(ConnectionClosed):
                if first is not None:
                    await late.send(first)
                for _ in range(3):
                    await late.recv()
            assert late.close_code == 4503


async def test_a_ticket_is_a_credential(server: Server) -> None:
    async with http(server, headers=SHOWN) as client:
        job_id = await post_job(client, **counting(1, 3))
        sse_url = (await client.get(f"/v1/jobs/{job_id}")).json()["sse_url"]
    async with http(server) as reader:
        await reader.get("/health")
        before = _stats(server)
        assert (await reader.get(sse_url)).status_code == 200
        assert _stats(server)[0] == before[0] + 1


# ---- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _few_files(env: dict[str, str]) -> Iterator[Server]:
    """A worker that may open few files."""
    become = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES})); "
    become += "os.execv(sys.executable, [sys.executable, '-m', 'worker', *sys.argv[1:]])"
    flags = ("--auth-timeout-s", "60", "--engine-restart-backoff-s", "0.05")
    with serving(*flags, env=env, program=("-c", become)) as running:
        yield running


@pytest.mark.parametrize("env", [ENV, {}], ids=["with a key", "without keys"])
@pytest.mark.parametrize("name", HEADS)
def test_when_files_are_few_others_are_answered_and_an_engine_is_started_again(env: dict[str, str], name: str) -> None:
    with _few_files(env) as running, _held(running, HEADS[name], SILENT):
        began_s, before_s = time.monotonic(), cpu_s(running.process.pid)
        assert running.get("/health").status_code == 200
        assert time.monotonic() - began_s < 3
        running.kill_engine()
        wait_until("another engine", lambda: running.get("/health").json()["restarts"] == 1)
        wait_until("it to be ready", lambda: bool(running.get("/v1/ready").json()["ready"]))
        passed_s, used_s = time.monotonic() - began_s, cpu_s(running.process.pid) - before_s
        assert used_s < 1 + passed_s / 2
        assert not [line for line in running.output if "Too many open files" in line]
