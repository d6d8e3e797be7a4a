"""Who gets a connection: at every request boundary, however its bytes arrive."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.rawsocket import handshake, text
from tests.e2e.raw import read_answer
from tests.transports.front.served import ECHO, PATIENCE_S, Connection, serving, upgraded
from worker.transports.front.hypercorn.server import HttpConnection

FIRST = f"GET {ECHO} HTTP/1.1"
UPGRADE = handshake(first=FIRST)
BODY = b"x" * 300
REQUESTS = {
    "a get": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /health"),
    "a longer path": (f"GET {ECHO}s HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), f"GET {ECHO}s".encode()),
    "no upgrade": (f"GET {ECHO}?a HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), f"GET {ECHO}".encode()),
    "another upgrade": (handshake({"Upgrade": "h2c"}, FIRST), f"GET {ECHO}".encode()),
    "another method": (handshake(first=f"POST {ECHO} HTTP/1.1"), f"POST {ECHO}".encode()),
    "another path": (handshake(first="GET /v1/other HTTP/1.1"), b"GET /v1/other"),
    "a body": (b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300\r\n\r\n" + BODY, b"POST /v1/jobs"),
}


async def send(connection: Connection, *pieces: bytes) -> None:
    """Send pieces, each of which arrives by itself, or with its neighbours: it must make no difference."""
    for piece in pieces:
        connection[1].write(piece)
        for _ in range(3):
            await asyncio.sleep(0)


async def answered(connection: Connection, body: bytes) -> None:
    answer = await asyncio.wait_for(read_answer(connection[0]), PATIENCE_S)
    assert (answer.status, answer.body) == (200, body)


async def echoes(connection: Connection) -> None:
    """The connection is a WebSocket now."""
    socket = await upgraded(connection)
    socket.send(text("and back"))
    assert [(await socket.frame()).payload for _ in range(2)] == [b"hello", b"and back"]


async def gone() -> None:
    """Hypercorn has let go of every connection."""
    served = [task for task in asyncio.all_tasks() if HttpConnection.__name__ in repr(task)]
    if served:
        _, pending = await asyncio.wait(served, timeout=PATIENCE_S)
        assert not pending


@pytest.mark.parametrize("requests_before", [0, 1, 2])
async def test_a_handshake_is_one_wherever_it_is_cut(requests_before: int) -> None:
    request, body = REQUESTS["a get"]
    async with serving() as front:
        for place in range(1, len(UPGRADE)):
            async with front.connection() as connection:
                for _ in range(requests_before):
                    await send(connection, request)
                    await answered(connection, body)
                await send(connection, UPGRADE[:place], UPGRADE[place:])
                await echoes(connection)
        await gone()


@pytest.mark.parametrize("name", REQUESTS)
async def test_everything_else_is_answered_wherever_it_is_cut(name: str) -> None:
    request, body = REQUESTS[name]
    async with serving() as front:
        for place in range(1, len(request), 1 if len(request) < 200 else 7):
            async with front.connection() as connection:
                await send(connection, request[:place], request[place:])
                await answered(connection, body)
                # At the next boundary, too.
                await send(connection, request[:place], request[place:])
                await answered(connection, body)
                await send(connection, UPGRADE)
                await echoes(connection)


@given(
    st.lists(st.sampled_from(sorted(REQUESTS)), max_size=4),
    st.lists(st.integers(1, 80), max_size=12),
)
def test_any_requests_and_then_a_handshake_in_any_pieces(names: list[str], sizes: list[int]) -> None:
    async def run() -> None:
        async with serving() as front, front.connection() as connection:
            for sent, body in [*(REQUESTS[name] for name in names), (UPGRADE, b"")]:
                rest, pieces = sent, []
                for size in sizes:
                    pieces.append(rest[:size])
                    rest = rest[size:]
                await send(connection, *filter(None, [*pieces, rest]))
                if body:
                    await answered(connection, body)
            await echoes(connection)

    asyncio.run(run())


async def test_requests_that_follow_each_other_unasked_are_answered_in_turn() -> None:
    """A handshake among them is not: nobody sends one before the answers that it would have to wait for."""
    names = ["a get", "a body", "no upgrade", "a get"]
    async with serving() as front, front.connection() as connection:
        await send(connection, b"".join(REQUESTS[name][0] for name in names))
        for name in names:
            await answered(connection, REQUESTS[name][1])
        await send(connection, UPGRADE)
        await echoes(connection)
    async with serving() as front, front.connection() as connection:
        await send(connection, REQUESTS["a get"][0] + UPGRADE)
        await answered(connection, b"GET /health")
        await answered(connection, f"GET {ECHO}".encode())


async def test_half_a_handshake_behind_a_request_is_no_boundary_yet() -> None:
    async with serving() as front, front.connection() as connection:
        await send(connection, REQUESTS["a get"][0] + UPGRADE[:30])
        await answered(connection, b"GET /health")
        await send(connection, UPGRADE[30:])
        await answered(connection, f"GET {ECHO}".encode())


async def test_a_connection_that_was_taken_over_is_left_alone_by_hypercorn() -> None:
    async with serving() as front, front.connection() as connection:
        await send(connection, REQUESTS["a get"][0])
        await answered(connection, b"GET /health")
        await send(connection, UPGRADE)
        await echoes(connection)
        await gone()
        await send(connection, text("still here"))
        assert (await asyncio.wait_for(connection[0].readexactly(12), PATIENCE_S))[2:] == b"still here"


@pytest.mark.parametrize("before", [b"", REQUESTS["a get"][0]], ids=["new", "kept"])
@pytest.mark.parametrize("part", [0, 3, 60, len(UPGRADE) - 1])
async def test_what_never_becomes_a_request_is_not_waited_for(before: bytes, part: int) -> None:
    async with serving() as front, front.connection() as connection:
        if before:
            await send(connection, before)
            await answered(connection, b"GET /health")
        await send(connection, UPGRADE[:part])
        assert await asyncio.wait_for(connection[0].read(), PATIENCE_S) == b""


async def test_a_head_that_is_too_long_is_refused() -> None:
    async with serving() as front, front.connection() as connection:
        await send(connection, UPGRADE[:-2] + b"X-Long: " + b"x" * 70_000)
        assert (await asyncio.wait_for(read_answer(connection[0]), PATIENCE_S)).status == 431
        assert await asyncio.wait_for(connection[0].read(), PATIENCE_S) == b""


@pytest.mark.parametrize(
    ("changes", "first", "status"),
    [
        ({"Sec-WebSocket-Version": "8"}, FIRST, 426),
        ({"Sec-WebSocket-Key": "short"}, FIRST, 400),
        ({"Content-Length": "5"}, FIRST, 400),
        ({}, f"GET {ECHO} HTTP/1.0", 400),
        ({"Host": None}, FIRST, 400),
    ],
)
async def test_a_refused_handshake_is_the_end_of_its_connection(
    changes: dict[str, str | None], first: str, status: int
) -> None:
    async with serving() as front, front.connection() as connection:
        await send(connection, handshake(changes, first))
        assert (await asyncio.wait_for(read_answer(connection[0]), PATIENCE_S)).status == status
        assert await asyncio.wait_for(connection[0].read(), PATIENCE_S) == b""


async def test_bytes_that_came_with_the_handshake_refuse_it() -> None:
    async with serving() as front, front.connection() as connection:
        await send(connection, UPGRADE + text("too early"))
        assert (await asyncio.wait_for(read_answer(connection[0]), PATIENCE_S)).status == 400


async def test_nobody_holds_up_a_shutdown() -> None:
    async with serving() as front, front.connection() as new, front.connection() as kept, front.connection() as taken:
        await send(kept, REQUESTS["a get"][0])
        await answered(kept, b"GET /health")
        await send(kept, b"GET /half HTTP/1.1\r\n")
        await send(taken, UPGRADE)
        await echoes(taken)
        await send(new, UPGRADE[:20])
        front.over.set()
        for connection in (new, kept):
            assert await asyncio.wait_for(connection[0].read(), PATIENCE_S) == b""
