"""Whatever stands in a header that the worker reads: an answer, never a 500, and no traceback in the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.rawsocket import UPGRADE
from tests.e2e.client import PATIENCE_S
from tests.e2e.raw import read_head
from tests.support.server import Server, serving

KEY = "correct-horse-battery-staple"
JOB = "/v1/jobs/0123456789abcdef"

NAMES = (
    "Host", "Origin", "Authorization", "Cookie", "Accept", "Content-Type", "Content-Encoding", "Content-Length",
    "Transfer-Encoding", "Last-Event-ID", "Idempotency-Key", "traceparent", "X-Correlation-ID", "X-Request-ID",
    "Sec-WebSocket-Protocol", "Sec-Fetch-Site", "If-None-Match", "Access-Control-Request-Method", "Expect",
    "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Forwarded", "Upgrade",
)  # fmt: skip
WORDS = (
    b"http://[", b"//host", b"localhost:80:80", b"localhost:99999", b"[::1", b"bearer.\xff", b"bearer.%", b"jobwire.v1",
    b"Bearer ", KEY.encode(), b"jobwire=", b"text/event-stream", b";q=", b"*/*", b"application/json", b"charset=", b'"',
    b"\xc3\xa9", b"\xff", b"\x80", b"xn--", b"b\xfccher.example", b"a" * 70, b"k3f9-", b"9" * 5000, b"chunked", b"gzip",
    b"\x00", b"\x1b[2J", b"\t", b"\x7f", b"\\", b"\\377", b"%", b"\r\n x", b"",
)  # fmt: skip
VALUES = st.lists(st.sampled_from(WORDS) | st.binary(max_size=6), max_size=4).map(b"".join)
HEADERS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)
FRAMING = {"Content-Length", "Transfer-Encoding"}
"""With these a request that has no body is not over."""

CALLS = [("GET", "/health"), ("POST", "/v1/jobs"), ("GET", f"{JOB}/stream"), ("DELETE", JOB), ("OPTIONS", "/v1/jobs")]

MALFORMED = [
    ("Origin", b"http://["), ("Origin", b"//localhost"), ("Origin", b"\xff"), ("Origin", b""), ("Origin", b"x" * 9999),
    ("Host", b"localhost:80:80"), ("Host", b"http://["), ("Host", b"[::1"), ("Host", b"localhost:99999"), ("Host", b""),
    ("Host", b"b\xfccher.example"), ("Host", b"b\xc3\xbccher.example"), ("Host", b"a" * 70), ("Host", b"a" * 9999),
    ("Host", b"a..b"), ("Host", b"xn--\xff"), ("Host", b"\x1b[2J"), ("Origin", b"http://\x00"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker with a key."""
    with serving(env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running
    said = "\n".join(running.output)
    assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:3000]


def _request(method: str, path: str, fields: dict[str, bytes]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode(), *(name.encode() + b": " + value for name, value in fields.items())]
    return b"\r\n".join([*lines, b"", b""])


async def _status(server: Server, sent: bytes) -> int | None:
    """Send a request, and return the status of the answer; None if the connection ended without."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(sent)
        status, _ = await asyncio.wait_for(read_head(reader), PATIENCE_S)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    else:
        return status
    finally:
        writer.transport.abort()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(CALLS), HEADERS, st.booleans())
def test_any_headers_of_a_request_get_an_answer(
    server: Server, call: tuple[str, str], headers: dict[str, bytes], known: bool
) -> None:
    fields = {"Host": b"localhost", "Connection": b"close"} | (
        {"Authorization": b"Bearer " + KEY.encode()} if known else {}
    )
    if known and call[0] == "POST":
        headers = {name: value for name, value in headers.items() if name not in FRAMING}
    status = asyncio.run(_status(server, _request(*call, fields | headers)))
    assert status is not None
    # An encoding of the transfer that nobody knows (RFC 9112, 6.1).
    assert status < 500 or (status == 501 and "Transfer-Encoding" in headers)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HEADERS)
def test_any_headers_of_a_handshake_get_an_answer(server: Server, headers: dict[str, bytes]) -> None:
    fields = {name: value.encode() for name, value in UPGRADE.items()}
    status = asyncio.run(_status(server, _request("GET", "/v1/ws", fields | headers)))
    assert status is not None
    assert status < 500 or (status == 501 and "Transfer-Encoding" in headers)


@pytest.mark.parametrize(("name", "value"), MALFORMED)
async def test_a_malformed_origin_or_host_is_400_or_403(server: Server, name: str, value: bytes) -> None:
    fields = {"Host": b"localhost", "Connection": b"close", name: value}
    assert await _status(server, _request("GET", "/health", fields)) in (400, 403)


@pytest.mark.parametrize(("name", "value"), MALFORMED)
async def test_a_malformed_origin_or_host_of_a_handshake_is_400_or_403(server: Server, name: str, value: bytes) -> None:
    """The close code says so too: a page cannot read the status."""
    fields = {field: text.encode() for field, text in UPGRADE.items()} | {name: value}
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(_request("GET", "/v1/ws", fields))
        status, _ = await asyncio.wait_for(read_head(reader), PATIENCE_S)
        assert status in (101, 400, 403)
        if status == 101:
            frame = await asyncio.wait_for(reader.readexactly(4), PATIENCE_S)
            assert (frame[0], int.from_bytes(frame[2:4])) == (0x88, 4403)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    "offered",
    [
        b"",
        b",",
        b"bearer.",
        b"bearer.\xff",
        b"bearer.%%%",
        b"bearer." + b"A" * 9999,
        b"x" * 9999,
        b"jobwire.v1,,",
        b"\t",
    ],
)
async def test_a_malformed_subprotocol_is_refused_or_none(server: Server, offered: bytes) -> None:
    fields = {field: text.encode() for field, text in UPGRADE.items()} | {"Sec-WebSocket-Protocol": offered}
    assert await _status(server, _request("GET", "/v1/ws", fields)) in (101, 400)


async def test_the_worker_still_answers(server: Server) -> None:
    assert json.loads(server.get("/health").text)["status"] == "healthy"
