"""RFC 6455 at the level of bytes: handshakes, frames and closes that libraries never send.

After each case the worker still serves, and the job of another client, which ran all the while, counts to its end.
Where the worker deviates from the RFC the test says so in its name or docstring.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.conformance.rawsocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawSocket,
    closing,
    encode,
    handshake,
    raw_connection,
    raw_socket,
    text,
)
from tests.e2e.client import PATIENCE_S, Socket, counting, expected_count
from tests.e2e.raw import exchange, read_head
from tests.support.server import Server, serving, wait_until

FRAME_BYTES_MAX = 16_384
PROTOCOL_ERROR, BAD_DATA, TOO_BIG = 1002, 1007, 1009
PINGED = '{"type":"ping","t":1}'
ALIVE = text(PINGED)
OTHER_LAST = 25


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker that takes small messages only."""
    with serving("--frame-bytes-max", str(FRAME_BYTES_MAX)) as running:
        yield running


@asynccontextmanager
async def undisturbed(server: Server) -> AsyncIterator[None]:
    """Another client's job begins before the block and must end well after it; the worker must serve newcomers."""
    async with Socket(server) as other:
        job_id = await other.create(**counting(1, OTHER_LAST))
        await other.until(lambda: bool(other.readings[job_id].tokens))
        yield
        (reading,) = await other.finish(job_id)
        assert reading.text() == expected_count(1, OTHER_LAST)
    async with Socket(server) as newcomer:
        assert (await newcomer.ask("ping"))["type"] == "pong"


async def lives(socket: RawSocket) -> None:
    """The connection still answers."""
    socket.send(ALIVE)
    assert await socket.json() == {"type": "pong", "t": 1}


# ---- the opening handshake (section 4.2) -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, str | None], str, int]] = {
    "no key": ({"Sec-WebSocket-Key": None}, "GET /v1/ws HTTP/1.1", 400),
    "key of other bytes than 16": ({"Sec-WebSocket-Key": "c2hvcnQ="}, "GET /v1/ws HTTP/1.1", 400),
    "key not in base64": ({"Sec-WebSocket-Key": "short"}, "GET /v1/ws HTTP/1.1", 400),
    "no host": ({"Host": None}, "GET /v1/ws HTTP/1.1", 400),
    "HTTP/1.0": ({}, "GET /v1/ws HTTP/1.0", 400),
    "old version": ({"Sec-WebSocket-Version": "8"}, "GET /v1/ws HTTP/1.1", 426),
    "no version": ({"Sec-WebSocket-Version": None}, "GET /v1/ws HTTP/1.1", 426),
    # These are no upgrades to WebSocket at all, and there is no page at that path.
    "no connection": ({"Connection": None}, "GET /v1/ws HTTP/1.1", 404),
    "connection without upgrade": ({"Connection": "keep-alive"}, "GET /v1/ws HTTP/1.1", 404),
    "no upgrade": ({"Upgrade": None}, "GET /v1/ws HTTP/1.1", 404),
    "upgrade to HTTP/2": ({"Upgrade": "h2c", "HTTP2-Settings": ""}, "GET /v1/ws HTTP/1.1", 404),
    "POST": ({}, "POST /v1/ws HTTP/1.1", 404),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_handshake_is_refused(server: Server, name: str) -> None:
    changes, first, status = REFUSED[name]
    async with undisturbed(server):
        answer = await exchange(server, handshake(changes, first))
    assert answer.status == status
    assert ("sec-websocket-version" in answer.headers) == (status == 426)
    assert answer.headers.get("sec-websocket-version", "13") == "13"


async def test_a_handshake_with_a_body_is_refused(server: Server) -> None:
    async with undisturbed(server):
        assert (await exchange(server, handshake({"Content-Length": "5"}) + b"hello")).status == 400


async def test_prior_knowledge_of_http2_is_refused(server: Server) -> None:
    """HTTP/2 belongs to a proxy, in plain text too: its preface is a request for no host."""
    async with undisturbed(server):
        assert (await exchange(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).status == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "uPGRADE", "Upgrade": "WebSocket"},
        {"Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode() + " "},
        {"Sec-WebSocket-Protocol": "jobwire.v1, other"},
        {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x-unknown"},
    ],
)
async def test_a_handshake_in_other_words_is_taken(server: Server, changes: dict[str, str | None]) -> None:
    async with undisturbed(server), raw_socket(server, changes) as socket:
        await lives(socket)


async def test_no_extension_is_agreed_upon_and_compressed_frames_are_a_violation(server: Server) -> None:
    offered = handshake({"Sec-WebSocket-Extensions": "permessage-deflate"})
    async with undisturbed(server), raw_connection(server) as (reader, writer):
        writer.write(offered)
        status, headers = await asyncio.wait_for(read_head(reader), PATIENCE_S)
        assert status == 101
        assert "sec-websocket-extensions" not in headers
        socket = RawSocket(reader, writer)
        await socket.json()
        socket.send(encode(TEXT, b"\xaa\x56\x4a", rsv=4))
        assert await socket.close_code() == PROTOCOL_ERROR


async def test_half_a_handshake_is_not_waited_for(server: Server) -> None:
    async with undisturbed(server), raw_connection(server) as (reader, writer):
        writer.write(handshake()[:60])
        assert not await asyncio.wait_for(reader.read(), PATIENCE_S)


# ---- frames (section 5) ----------------------------------------------------------------------------------------------

_MESSAGE = PINGED.encode()
VIOLATIONS: dict[str, tuple[list[bytes], int]] = {
    "not masked": ([encode(TEXT, _MESSAGE, mask=False)], PROTOCOL_ERROR),
    "RSV1": ([encode(TEXT, _MESSAGE, rsv=4)], PROTOCOL_ERROR),
    "RSV2": ([encode(TEXT, _MESSAGE, rsv=2)], PROTOCOL_ERROR),
    "RSV3": ([encode(TEXT, _MESSAGE, rsv=1)], PROTOCOL_ERROR),
    **{f"opcode {opcode}": ([encode(opcode)], PROTOCOL_ERROR) for opcode in (3, 7, 11, 15)},
    "continuation of nothing": ([encode(CONTINUATION, b"x")], PROTOCOL_ERROR),
    "continuation after the end": ([ALIVE, encode(CONTINUATION, b"x")], PROTOCOL_ERROR),
    "message within a message": ([encode(TEXT, b"{", fin=False), encode(TEXT, b"{")], PROTOCOL_ERROR),
    "control frame too long": ([encode(PING, b"x" * 126)], PROTOCOL_ERROR),
    "control frame in fragments": ([encode(PING, b"x", fin=False)], PROTOCOL_ERROR),
    "close in fragments": ([encode(CLOSE, struct.pack("!H", 1000), fin=False)], PROTOCOL_ERROR),
    "length in 2 bytes where none are needed": ([encode(TEXT, _MESSAGE, length_bytes=2)], PROTOCOL_ERROR),
    "length in 8 bytes where none are needed": ([encode(TEXT, _MESSAGE, length_bytes=8)], PROTOCOL_ERROR),
    "length in 8 bytes where 2 would do": ([encode(TEXT, b" " * 200, length_bytes=8)], PROTOCOL_ERROR),
    "length with its first bit set": ([encode(TEXT, b"x", declared=1 << 63)], PROTOCOL_ERROR),
    "close with half a code": ([encode(CLOSE, b"\x03")], PROTOCOL_ERROR),
    "close reason not UTF-8": ([closing(1000, b"\xff")], BAD_DATA),
    "text not UTF-8": ([encode(TEXT, b'{"\xff"}')], BAD_DATA),
    "text with a surrogate": ([encode(TEXT, b"\xed\xa0\x80")], BAD_DATA),
    "text that ends in half a character": ([encode(TEXT, "€".encode()[:2])], BAD_DATA),
    "first fragment not UTF-8": ([encode(TEXT, b"\xff", fin=False)], BAD_DATA),
    "later fragment not UTF-8": ([encode(TEXT, "€".encode()[:2], fin=False), encode(0, b"x")], BAD_DATA),
    "message too big": ([encode(TEXT, b" " * (FRAME_BYTES_MAX + 1))], TOO_BIG),
    "binary message too big": ([encode(BINARY, b" " * (FRAME_BYTES_MAX + 1))], TOO_BIG),
    "too big in fragments": ([encode(TEXT, b" " * 9000, fin=False), encode(0, b" " * 9000, fin=False)], TOO_BIG),
    "huge length": ([encode(TEXT, b" " * (FRAME_BYTES_MAX + 1), declared=1 << 62)], TOO_BIG),
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_a_violation_closes_with_its_code(server: Server, name: str) -> None:
    frames, code = VIOLATIONS[name]
    async with undisturbed(server), raw_socket(server) as socket:
        # Half-closed, because after 1009 the worker reads on for a while: nothing more will come.
        socket.send(*frames)
        socket.half_close()
        assert await socket.close_code() == code


_WHOLE = '{"type":"ping","ref":"é€😀"}'.encode()


@pytest.mark.parametrize(
    "frames",
    [
        [encode(TEXT, _WHOLE)],
        [encode(TEXT, _WHOLE[:5], fin=False), encode(CONTINUATION, _WHOLE[5:])],
        [encode(TEXT, b"", fin=False), encode(CONTINUATION, b"", fin=False), encode(CONTINUATION, _WHOLE)],
        [
            encode(CONTINUATION if place else TEXT, _WHOLE[place : place + 1], fin=place == len(_WHOLE) - 1)
            for place in range(len(_WHOLE))
        ],
        [encode(TEXT, _WHOLE + b" " * (126 - len(_WHOLE)))],
        [encode(TEXT, _WHOLE + b" " * (FRAME_BYTES_MAX - len(_WHOLE)))],
    ],
    ids=["one", "two", "empty ones", "every byte", "2 bytes of length", "the largest"],
)
async def test_fragments_are_one_message(server: Server, frames: list[bytes]) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(*frames)
        assert await socket.json() == {"type": "pong", "ref": "é€😀"}


async def test_control_frames_come_between_fragments(server: Server) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(encode(TEXT, _MESSAGE[:7], fin=False), encode(PING, b"between"), encode(PONG, b"unasked"))
        seen = await socket.frame()
        assert (seen.opcode, seen.payload) == (PONG, b"between")
        socket.send(encode(CONTINUATION, _MESSAGE[7:]))
        assert await socket.json() == {"type": "pong", "t": 1}


@pytest.mark.parametrize("payload", [b"", b"hi", bytes(range(125))])
async def test_a_ping_is_echoed(server: Server, payload: bytes) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(encode(PING, payload))
        seen = await socket.frame()
        assert (seen.opcode, seen.payload) == (PONG, payload)


async def test_of_many_pings_the_last_is_answered(server: Server) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        # As many as a second may have.
        socket.send(*(encode(PING, str(number).encode()) for number in range(100)))
        answered = -1
        while answered < 99:
            seen = await socket.frame()
            assert seen.opcode == PONG
            number = int(seen.payload)
            assert answered < number
            answered = number


async def test_a_pong_that_nobody_asked_for_is_ignored(server: Server) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(encode(PONG), encode(PONG, b"unasked"))
        await lives(socket)


async def test_a_binary_message_costs_an_error_and_not_the_socket(server: Server) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(encode(BINARY, _MESSAGE))
        assert (await socket.json())["error"]["code"] == "unsupported_media_type"
        await lives(socket)


@pytest.mark.parametrize("sent", [1, 2, 5, 6, 20])
async def test_half_a_frame_then_silence_holds_up_nobody(server: Server, sent: int) -> None:
    async with raw_socket(server) as socket:
        async with undisturbed(server):
            socket.send(ALIVE[:sent])
        socket.send(ALIVE[sent:])
        assert await socket.json() == {"type": "pong", "t": 1}


async def test_half_a_frame_then_the_end(server: Server) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(ALIVE[:9])
        socket.half_close()
        # Long before the next ping would be due.
        assert await asyncio.wait_for(socket.rest(), 10) == b""


async def test_a_message_without_an_end_costs_no_memory(server: Server) -> None:
    """It is refused at once, whatever follows is thrown away, and one who never stops is cut off."""
    chunk = encode(CONTINUATION, b" " * 1_000_000, fin=False)
    async with undisturbed(server), raw_socket(server) as socket:
        before = server.rss_bytes()
        socket.send(encode(TEXT, b" " * (FRAME_BYTES_MAX + 1), fin=False))
        for _ in range(40):
            socket.send(chunk)
            await socket.drain()
        seen = await socket.frame()
        assert (seen.opcode, seen.code) == (CLOSE, TOO_BIG)
        grown = server.rss_bytes() - before
        assert await socket.rest() == b""
    assert grown < 15_000_000


# ---- closing (sections 5.5.1 and 7) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
async def test_a_close_is_echoed(server: Server, code: int) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(closing(code, "Ende gut €".encode()))
        assert await socket.close_code() == code


async def test_a_close_without_a_code_is_echoed_without_one(server: Server) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(encode(CLOSE))
        assert await socket.close_code() is None


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
async def test_a_close_with_a_code_that_may_not_be_sent_is_a_violation(server: Server, code: int) -> None:
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(closing(code))
        assert await socket.close_code() == PROTOCOL_ERROR


async def test_what_follows_a_close_is_not_read(server: Server) -> None:
    job_id = "after-the-close-0001"
    created = text(json.dumps({"type": "create", "job_id": job_id, **counting(1, 3)}))
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(closing(1000), created, ALIVE)
        assert await socket.close_code() == 1000
    assert server.get(f"/v1/jobs/{job_id}").status_code == 404


async def test_what_came_before_a_close_is_done(server: Server) -> None:
    job_id = "before-the-close-001"
    created = text(json.dumps({"type": "create", "job_id": job_id, **counting(1, 3)}))
    async with undisturbed(server), raw_socket(server) as socket:
        socket.send(created, closing(1000))
        assert await socket.close_code() == 1000
    wait_until("the job to end", lambda: server.get(f"/v1/jobs/{job_id}").json().get("status") == "completed")
