"""Many tiny things in one read hold up nobody, and one who sends too many of them is closed with a code.

What counts is how long others wait meanwhile: half a second here, on a busy machine; a read's worth took seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from tests.conformance.rawsocket import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawSocket,
    encode,
    handshake,
    raw_connection,
    raw_socket,
    text,
)
from tests.e2e.client import PATIENCE_S, Socket, counting, expected_count
from tests.e2e.raw import exchange, read_head, request
from tests.support.server import Server, serving, wait_until

T = TypeVar("T")

KEY = "sixteen-characters-or-more"
SHOWN = {"Authorization": f"Bearer {KEY}"}
NOT_SHOWN: dict[str, str] = {}
WAIT_MAX_S = 1.0
FLOOD = 40_000
TOO_MANY, ABUSE = 1008, 4400
PER_S = 100

FIRST = encode(TEXT, b"{", fin=False)
FLOODS = {
    "pings": encode(PING) * FLOOD,
    "pings with a payload": encode(PING, b"x" * 10) * FLOOD,
    "pongs": encode(PONG) * FLOOD,
    "empty fragments": FIRST + encode(CONTINUATION, fin=False) * FLOOD,
    "fragments of one byte": FIRST + encode(CONTINUATION, b" ", fin=False) * FLOOD,
    "fragments and pings": FIRST + (encode(CONTINUATION, b" ", fin=False) + encode(PING)) * FLOOD,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker with a key."""
    with serving(env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


async def _longest_wait(server: Server, during: Awaitable[T]) -> tuple[float, T]:
    """Return the longest that a request of another client took while something went on, and its result."""
    loop, waits = asyncio.get_running_loop(), [0.0]
    task = asyncio.ensure_future(during)
    while not task.done():
        began_s = loop.time()
        await exchange(server, request("GET", "/health", {}))
        waits.append(loop.time() - began_s)
    return max(waits), await task


@asynccontextmanager
async def _greeted(server: Server, headers: dict[str, str]) -> AsyncIterator[RawSocket]:
    async with raw_connection(server) as (reader, writer):
        writer.write(handshake(headers))
        assert (await read_head(reader))[0] == 101
        socket = RawSocket(reader, writer)
        assert (await socket.json())["auth"] == ("ok" if headers else "required")
        yield socket


async def _flood(socket: RawSocket, sent: bytes) -> tuple[int | None, bytes]:
    """Send, and return code and reason with which the worker closes."""
    socket.send(sent)
    while (seen := await socket.frame()).opcode != CLOSE:
        pass
    assert await socket.rest() == b""
    return seen.code, seen.payload[2:]


@pytest.mark.parametrize("headers", [SHOWN, NOT_SHOWN], ids=["with a key", "without a key"])
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_tiny_frames_is_closed_and_holds_up_nobody(
    server: Server, name: str, headers: dict[str, str]
) -> None:
    async with _greeted(server, headers) as socket:
        wait_s, (code, reason) = await _longest_wait(server, _flood(socket, FLOODS[name]))
    assert code == TOO_MANY
    assert str(PER_S).encode() in reason
    assert wait_s < WAIT_MAX_S


@pytest.mark.parametrize("headers", [SHOWN, NOT_SHOWN], ids=["with a key", "without a key"])
async def test_a_flood_of_json_pings_is_closed_and_holds_up_nobody(server: Server, headers: dict[str, str]) -> None:
    async with _greeted(server, headers) as socket:
        wait_s, (code, _) = await _longest_wait(server, _flood(socket, text('{"type":"ping"}') * (FLOOD // 4)))
    assert code == ABUSE
    assert wait_s < WAIT_MAX_S


async def test_four_floods_at_once_hold_up_nobody(server: Server) -> None:
    async with Socket(server, additional_headers=SHOWN) as other:
        job_id = await other.create(**counting(1, 25))

        async def attack(name: str) -> int | None:
            async with _greeted(server, NOT_SHOWN) as socket:
                return (await _flood(socket, FLOODS[name]))[0]

        attacks = asyncio.gather(*(attack(name) for name in list(FLOODS)[:4]))
        wait_s, codes = await _longest_wait(server, attacks)
        assert codes == [TOO_MANY] * 4
        assert wait_s < WAIT_MAX_S
        (reading,) = await other.finish(job_id)
        assert reading.text() == expected_count(1, 25)


@pytest.mark.parametrize("path", ["/v1/jobs", "/nope", "/health"])
async def test_chunks_of_one_byte_hold_up_nobody(server: Server, path: str) -> None:
    head = request("POST", path, {"Transfer-Encoding": "chunked", "Content-Type": "application/json"})

    async def attack() -> None:
        async with raw_connection(server) as (reader, writer):
            writer.write(head + b"1\r\nx\r\n" * FLOOD + b"0\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)

    wait_s, _ = await _longest_wait(server, asyncio.gather(*(attack() for _ in range(4))))
    assert wait_s < WAIT_MAX_S


async def test_nothing_of_a_flood_stays(server: Server) -> None:
    """Also where the client does not go, and sends more than the worker's inbox for it holds."""
    async with _greeted(server, SHOWN) as socket:
        socket.send(text('{"type":"ping"}') * 2000)
        await asyncio.wait_for(socket.rest(), PATIENCE_S)

        def gone() -> bool:
            stats = server.get("/v1/stats", headers=SHOWN).json()
            return bool((stats["sockets"], stats["connections_known"]) == (0, 1))

        await asyncio.to_thread(wait_until, "the connection to be forgotten", gone)


async def test_a_large_message_in_usual_fragments_is_none(server: Server) -> None:
    """1 MiB in fragments of 16 KiB, and of the smallest that are not needless, with pings before them."""
    message = b'{"type":"ping","t":1}'
    for size in (16_384, 256):
        whole = message + b" " * ((1 << 20) - len(message))
        parts = [whole[place : place + size] for place in range(0, len(whole), size)]
        frames = [
            encode(CONTINUATION if number else TEXT, part, fin=number == len(parts) - 1)
            for number, part in enumerate(parts)
        ]
        async with raw_connection(server) as (reader, writer):
            writer.write(handshake(SHOWN))
            await read_head(reader)
            socket = RawSocket(reader, writer)
            await socket.json()
            socket.send(encode(PING) * (PER_S // 2), *frames)
            while (seen := await socket.frame()).opcode == PONG:
                pass
            assert b'"t":1' in seen.payload


async def test_a_smaller_limit_holds() -> None:
    with serving("--control-frames-per-s-max", "3", ready=False) as running:
        async with raw_socket(running) as socket:
            socket.send(encode(PING) * 3, text('{"type":"ping"}') * 3)
            while (await socket.frame()).opcode != TEXT:
                pass
            assert (await _flood(socket, encode(PING) * 4))[0] == TOO_MANY
        async with raw_socket(running) as socket:
            assert (await _flood(socket, text('{"type":"ping"}') * 9))[0] == ABUSE
