"""HTTP/1.1 where RFC 9112 lets two readers see two things: refused, and the connection ends before more is read.

Also on the handshake of a WebSocket.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import pytest

from tests.conformance.rawsocket import handshake, raw_connection
from tests.e2e.client import PATIENCE_S
from tests.support.server import Server, serving

SECOND = b"GET /v1/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"

AMBIGUOUS = {
    "length and encoding": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "encoding and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "folded": b"X-Name: a\r\n b\r\n",
    "folded by a tab": b"X-Name: a\r\n\tb\r\n",
    "folded encoding": b"Transfer-Encoding:\r\n chunked\r\n",
    "folded at once": b" X-Name: a\r\n",
    "control character": b"X-Name: a\x01b\r\n",
    "escape": b"User-Agent: \x1b[2J\r\n",
    "delete": b"X-Name: a\x7f\r\n",
    "NUL": b"X-Name: a\0b\r\n",
    "bare CR": b"X-Name: a\rX: y\r\n",
    "UTF-8": "X-Name: 20 €\r\n".encode(),
    "upgrade not ASCII": b"Upgrade: \xe9\r\n",
}

FINE = {
    "Latin-1": "X-Name: é\r\n".encode("latin-1"),
    "a tab": b"X-Name: a\tb\r\n",
    "an empty value": b"X-Name:\r\n",
    "somebody else's cookie in UTF-8": "Cookie: other=…\r\n".encode(),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker."""
    with serving(ready=False) as running:
        yield running


async def _all(server: Server, sent: bytes) -> bytes:
    async with raw_connection(server) as (reader, writer):
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), PATIENCE_S)


def _statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def _assert_refused(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["retriable"]) == (400, "bad_request", False)
    assert problem["detail"]


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_an_ambiguous_head_is_refused_and_the_connection_ends(server: Server, name: str) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + AMBIGUOUS[name] + b"\r\n"
    _assert_refused(await _all(server, head + b"0\r\n\r\n" + SECOND))


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_so_is_an_ambiguous_handshake(server: Server, name: str) -> None:
    _assert_refused(await _all(server, handshake()[:-2] + AMBIGUOUS[name] + b"\r\n"))


async def test_the_second_request_of_a_connection_is_read_as_strictly(server: Server) -> None:
    answers = await _all(server, SECOND + b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n" + SECOND)
    first, second = _statuses(answers)
    assert (first in (200, 503), second) == (True, 400)
    _assert_refused(answers[answers.rindex(b"HTTP/1.1 400") :])


async def test_the_answer_to_a_head_request_has_no_body(server: Server) -> None:
    answer = await _all(server, b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nX: a\x01\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")


async def test_folded_trailers_end_the_connection(server: Server) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert len(_statuses(await _all(server, head + b"0\r\nX: a\r\n b\r\n\r\n" + SECOND))) == 1


@pytest.mark.parametrize("name", FINE)
async def test_what_may_be_in_a_head_is_taken(server: Server, name: str) -> None:
    head = b"GET /v1/loading/progress HTTP/1.0\r\nHost: localhost\r\n" + FINE[name] + b"\r\n"
    assert (await _all(server, head)).startswith(b"HTTP/1.1 200 ")
