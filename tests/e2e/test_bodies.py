"""Bodies that nobody needs: whatever is sent, the answer comes at once, memory stays, and the connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.client import http, new_id
from tests.e2e.raw import exchange, read_answer, read_head, request
from tests.support.server import Server, serving

PIECE = b" " * 65_536
POURED_BYTES_MAX = 128 << 20
AT_ONCE_S = 1.0
CLOSED_WITHIN_S = 6.0
GROWTH_BYTES_MAX = 20 << 20

CHUNKED = {"Transfer-Encoding": "chunked"}
LONG = {"Content-Length": "100000000000"}
JSON = {"Accept": "application/json", "Content-Type": "application/json"}
EVENTS = {"Accept": "text/event-stream"}

CALLS = [
    *(("GET", path, 200) for path in ("/health", "/v1/ready", "/v1/loading/progress", "/metrics", "/v1/stats")),
    *(("GET", path, 200) for path in ("/", "/docs", "/openapi.json", "/v1/jobs")),
    *((method, "/nowhere", 404) for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")),
    ("HEAD", "/health", 200),
    ("OPTIONS", "/v1/jobs", 200),
    ("PUT", "/v1/jobs", 405),
    ("GET", f"/v1/jobs/{'x' * 16}", 404),
    ("GET", f"/v1/jobs/{'x' * 16}/stream", 404),
    ("GET", f"/v1/inference/{'x' * 16}/stream", 404),
    ("DELETE", f"/v1/jobs/{'x' * 16}", 404),
    ("POST", "/v1/jobs", 413),
    ("POST", "/v1/tokens", 413),
    ("POST", "/v1/inference", 413),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker without keys."""
    with serving("--heartbeat-s", "0.2") as running:
        yield running


@dataclass
class Poured:
    """What came back while a body without end was sent. The connection ended unless it took `CLOSED_WITHIN_S`."""

    status: int
    headers: dict[str, str]
    head_s: float
    body: bytes
    ended: bool


async def _pour(writer: asyncio.StreamWriter, chunked: bool) -> None:
    piece = b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE
    with contextlib.suppress(ConnectionError):
        for _ in range(POURED_BYTES_MAX // len(PIECE)):
            writer.write(piece)
            await writer.drain()
        # As many as were allowed: from here on the body does not go on, and does not end.


@contextlib.asynccontextmanager
async def _pouring(
    server: Server, head: bytes, chunked: bool
) -> AsyncIterator[tuple[asyncio.StreamReader, Callable[[], None]]]:
    """Connect; yield what comes, and the function that begins to pour."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head)
    tasks: list[asyncio.Task[None]] = []
    try:
        yield reader, lambda: tasks.append(asyncio.create_task(_pour(writer, chunked)))
    finally:
        writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pour(server: Server, method: str, path: str, headers: dict[str, str], *, late: bool = False) -> Poured:
    """Send a request with a body without end, which begins `late` if it waits for the answer; read what comes."""
    fields = {"Connection": "keep-alive", **headers}
    before = time.monotonic()
    async with _pouring(server, request(method, path, fields), "Transfer-Encoding" in headers) as (reader, begin):
        if not late:
            begin()
        async with asyncio.timeout(CLOSED_WITHIN_S):
            status, got = await read_head(reader)
        if late:
            begin()
        head_s = time.monotonic() - before
        body = b""
        try:
            async with asyncio.timeout(CLOSED_WITHIN_S):
                while data := await reader.read(1 << 16):
                    body += data
        except TimeoutError:
            return Poured(status, got, head_s, body, ended=False)
        except ConnectionError:
            pass
        return Poured(status, got, head_s, body, ended=True)


@pytest.mark.parametrize("form", [CHUNKED, LONG], ids=["chunked", "long"])
@pytest.mark.parametrize(("method", "path", "status"), CALLS)
async def test_no_answer_waits_for_a_body_and_no_body_is_kept(
    server: Server, method: str, path: str, status: int, form: dict[str, str]
) -> None:
    before = server.rss_bytes()
    poured = await pour(server, method, path, {**JSON, **form})
    needless = form is LONG and method not in ("POST", "PUT", "PATCH")
    assert poured.status == (413 if needless else status)
    assert poured.head_s < AT_ONCE_S
    assert poured.headers["connection"] == "close"
    assert poured.ended, f"open for {CLOSED_WITHIN_S} s after the answer"
    if "content-length" in poured.headers and method != "HEAD":
        assert len(poured.body) == int(poured.headers["content-length"])
    assert server.rss_bytes() - before < GROWTH_BYTES_MAX


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_a_stream_with_a_body_without_end_is_cut(server: Server, accept: str) -> None:
    """Its job goes on. It is cut as soon as there is too much: the head of the answer might be overtaken."""
    job_id = new_id()
    with server.frozen_engine():
        async with http(server) as client:
            made = await client.post("/v1/jobs", json={"job_id": job_id, "prompt": "Hi", "max_tokens": 5}, headers=JSON)
        before = server.rss_bytes()
        poured = await pour(server, "GET", f"/v1/jobs/{job_id}/stream", {"Accept": accept, **CHUNKED}, late=True)
        assert server.rss_bytes() - before < GROWTH_BYTES_MAX
    assert made.status_code == poured.status == 200
    assert poured.head_s < AT_ONCE_S
    assert poured.ended
    async with http(server) as client:
        whole = await client.get(f"/v1/jobs/{job_id}/stream", headers=EVENTS)
    assert '"status":"completed"' in whole.text


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
async def test_a_small_body_that_means_nothing_is_tolerated(server: Server, method: str) -> None:
    """Some libraries send one. Where it came with the request, the connection stays."""
    body = b"{}" * 1000
    fields = {**JSON, "Connection": "keep-alive"}
    path = "/health" if method != "DELETE" else f"/v1/jobs/{'x' * 16}"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for _ in range(3):
            writer.write(request(method, path, fields, body))
            status, headers = await read_head(reader)
            assert status == (404 if method == "DELETE" else 200)
            assert "connection" not in headers
            if method != "HEAD":
                await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()


@pytest.mark.parametrize("late", [b"", b"{}"], ids=["never", "later"])
async def test_an_answer_does_not_wait_for_a_body_that_comes_late(server: Server, late: bytes) -> None:
    """What it carries is not the next request, whatever it looks like."""
    smuggled = request("GET", "/health", JSON)
    head = request("DELETE", f"/v1/jobs/{'x' * 16}", {**JSON, "Connection": "keep-alive", "Content-Length": "9999"})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(head)
        async with asyncio.timeout(AT_ONCE_S):
            answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        writer.write(late + smuggled)
        async with asyncio.timeout(CLOSED_WITHIN_S):
            assert await reader.read() == b""
    finally:
        writer.transport.abort()


async def test_a_head_request_to_a_stream_gets_its_headers_and_no_stream(server: Server) -> None:
    job_id = new_id()
    with server.frozen_engine():
        async with http(server) as client:
            await client.post("/v1/jobs", json={"job_id": job_id, "prompt": "Hi", "max_tokens": 5}, headers=JSON)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(request("HEAD", f"/v1/jobs/{job_id}/stream", EVENTS))
            status, headers = await read_head(reader)
            assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            async with asyncio.timeout(CLOSED_WITHIN_S):
                assert await reader.read() == b""
        finally:
            writer.close()


async def test_what_a_client_sent_is_never_quoted_at_length(server: Server) -> None:
    """Whatever is wrong with a request, the answer has about 200 characters of it."""
    long = "x" * 50_000
    for sent in (
        request("GET", f"/v1/jobs/{long}", JSON),
        request("GET", f"/{long}", JSON),
        request("X" * 9999, "/health", {**JSON, **LONG}),
        request("GET", "/health", {**JSON, "Host": long + ".example"}),
        request("GET", "/health", {**JSON, "Origin": f"https://{long}"}),
        request("POST", "/v1/jobs", {**JSON, "Content-Encoding": long}, b"{}"),
        request("POST", "/v1/jobs", {**JSON, "Idempotency-Key": long}, b'{"prompt":"Hi"}'),
        request("POST", "/v1/jobs", JSON, json.dumps({"prompt": "Hi", "operation": "o" * 64, "job_id": long}).encode()),
    ):
        answer = await exchange(server, sent)
        assert 400 <= answer.status < 500, answer
        assert len(answer.body) < 2000
        assert long[:300].encode() not in answer.body
