"""Whatever arrives, as messages, as bytes of frames, as HTTP bodies: an error or a close with a code, and nothing else.

The jobs of others run on meanwhile, and what the operator reads has no traceback.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conformance.rawsocket import BINARY, CLOSE, TEXT, RawSocket, encode, raw_connection, raw_socket, text
from tests.e2e.client import PATIENCE_S, Frame, Socket, counting, expected_count
from tests.e2e.raw import exchange, request
from tests.support.server import Server, serving

FRAME_BYTES_MAX = 65_536
FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
REPLIES = {"accepted", "error", "pong", "narration", "token", "end"}
TYPES = ["create", "cancel", "subscribe", "unsubscribe", "update", "ack", "auth", "ping", "end", ""]
FIELDS = [
    "job_id",
    "prompt",
    "messages",
    "after",
    "ref",
    "channels",
    "window",
    "coalesce_ms",
    "priority",
    "cursor",
    "t",
]
FIELDS += ["max_tokens", "temperature", "stop", "seed", "n", "response_format", "logit_bias", "token", "operation"]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ids = st.sampled_from(["0123456789abcdef", "garbage-0000-0001", "x", "../../etc/passwd"])
objects = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES) | values},
    optional={name: ids if name == "job_id" else values for name in FIELDS},
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker of its own, whose output is looked at in the end."""
    with serving("--frame-bytes-max", str(FRAME_BYTES_MAX)) as running:
        yield running
        output = "\n".join(running.output)
        assert "Traceback" not in output, output[-4000:]


@pytest.fixture(scope="module", autouse=True)
def others_count_on(server: Server) -> Iterator[None]:
    """Before and after all of it, a job of somebody else is exact."""
    asyncio.run(_count(server))
    yield
    asyncio.run(_count(server))


async def _count(server: Server) -> None:
    async with Socket(server) as other:
        assert (await other.run(**counting(1, 30))).text() == expected_count(1, 30)


def run(checking: Coroutine[Any, Any, None]) -> None:
    """Run one example, bounded."""
    asyncio.run(asyncio.wait_for(checking, PATIENCE_S))


async def answered(socket: RawSocket) -> Frame | int | None:
    """The next reply, or the code of the close."""
    while True:
        seen = await socket.frame()
        if seen.opcode == CLOSE:
            return seen.code
        frame: Frame = json.loads(seen.payload)
        assert frame["type"] in REPLIES, frame
        if "cursor" not in frame:
            return frame


async def check_message(server: Server, message: bytes, opcode: int = TEXT) -> None:
    """A message has a reply, or closes the connection with a code."""
    async with raw_socket(server) as socket:
        socket.send(encode(opcode, message), text('{"type":"ping","ref":"after"}'))
        reply = await answered(socket)
        if isinstance(reply, dict) and reply["type"] == "error":
            assert reply["error"]["code"]
            assert reply["error"]["detail"]
        while isinstance(reply, dict) and reply.get("ref") != "after":
            reply = await answered(socket)
        assert isinstance(reply, dict) or reply in (1007, 1009, 4400, 4401), reply


async def check_body(server: Server, body: bytes) -> None:
    """A body has an answer, and one that is refused a problem."""
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    answer = await exchange(server, request("POST", "/v1/jobs", headers, body))
    assert answer.status in (200, 400, 404, 413, 422, 429), answer
    if answer.status != 200:
        problem = json.loads(answer.body)
        assert problem["status"] == answer.status
        assert problem["code"] and problem["detail"]


@FEW
@given(message=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_text_message(server: Server, message: bytes) -> None:
    run(check_message(server, message))


@FEW
@given(message=st.binary(max_size=200))
def test_any_binary_message(server: Server, message: bytes) -> None:
    run(check_message(server, message, BINARY))


@FEW
@given(fields=objects)
@example({"type": "create", "prompt": "Hi", "max_tokens": 10**400})
@example({"type": "create", "prompt": "Hi", "stop": [""]})
@example({"type": "create", "prompt": "Hi", "response_format": {"type": "regex", "pattern": "("}})
@example({"type": "create", "prompt": "\ud83d"})
def test_any_frame(server: Server, fields: dict[str, object]) -> None:
    run(check_message(server, json.dumps({"max_tokens": 4, **fields}).encode()))


@FEW
@given(fields=objects)
def test_any_json_body(server: Server, fields: dict[str, object]) -> None:
    run(check_body(server, json.dumps({"max_tokens": 4, **fields}).encode()))


@FEW
@given(body=st.binary(max_size=300) | values.map(json.dumps).map(str.encode))
def test_any_body(server: Server, body: bytes) -> None:
    run(check_body(server, body))


@FEW
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_after_the_handshake(server: Server, data: bytes) -> None:
    """Frames that are none: the worker closes, or waits for the rest of a frame, and we go."""

    async def check() -> None:
        async with raw_socket(server) as socket:
            socket.send(data)
            socket.half_close()
            await socket.rest()

    run(check())


@FEW
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_instead_of_a_request(server: Server, data: bytes) -> None:
    async def check() -> None:
        async with raw_connection(server) as (reader, writer):
            writer.write(data)
            writer.write_eof()
            answer = await reader.read()
            assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))

    run(check())


DEEP = 20_000
NESTED = {
    "arrays": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * (DEEP // 4) + b"1" + b"}" * (DEEP // 4),
    "never closed": b"[" * DEEP,
    "in a field": b'{"type":"create","prompt":"Hi","logit_bias":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "long number": b'{"type":"ping","t":' + b"9" * 60_000 + b"}",
    "long name": b'{"type":"ping","' + b"x" * 60_000 + b'":1}',
    "many fields": b'{"type":"ping",' + b",".join(b'"%d":0' % number for number in range(5000)) + b"}",
    "the same field again": b'{"type":"ping",' + b",".join([b'"t":1'] * 9000) + b"}",
}


@pytest.mark.parametrize("name", NESTED)
async def test_deep_and_long(server: Server, name: str) -> None:
    await check_message(server, NESTED[name])
    await check_body(server, NESTED[name])


async def test_garbage_from_many_while_a_job_runs(server: Server) -> None:
    async with Socket(server) as other:
        job_id = await other.create(**counting(1, 150))
        await other.until(lambda: bool(other.readings[job_id].tokens))
        noise = asyncio.gather(*(check_message(server, bytes([number]) * 50) for number in range(100)))
        (reading,) = await other.finish(job_id)
        assert reading.text() == expected_count(1, 150)
        await noise
