"""Heartbeats, posted over real sockets to a coordinator that answers, refuses, stalls or is away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from worker.observers.heartbeat import Heartbeats, post_json

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OK = b"HTTP/1.1 204 No Content\r\n\r\n"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def coordinator(answer: Answer) -> AsyncIterator[SimpleNamespace]:
    """Listen on a free port, keep each request (head, body) and let `answer` write what comes back."""
    requests: list[tuple[str, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        requests.append((head, await reader.readexactly(length)))
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", requests=requests, stop=server.close)


def replies(*lines: bytes) -> Answer:
    """Answer each request with the next of `lines`, the last one again and again."""
    left = list(lines)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()

    return answer


async def beat(url: str, times: int, *, timeout_s: float = 5.0, health: str = "healthy") -> list[float]:
    """Run heartbeats for `times` rounds without waiting between them; return the waits that were asked for."""
    waits: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == times:
            raise Enough

    heartbeats = Heartbeats(
        queen_url=url,
        worker_id="w-1",
        every_s=30.0,
        health=lambda: "degraded" if health == "degraded" else "healthy",
        now=lambda: NOW,
        sleep=sleep,
        timeout_s=timeout_s,
    )
    with pytest.raises(Enough):
        await heartbeats.run()
    return waits


def test_a_heartbeat_is_what_older_coordinators_expect() -> None:
    async def scenario() -> None:
        async with coordinator(replies(OK)) as queen:
            assert await beat(queen.url + "/", 2, health="degraded") == [30.0, 30.0]
        assert len(queen.requests) == 2
        head, body = queen.requests[0]
        assert head.startswith("POST /v1/worker-heartbeat HTTP/1.1\r\n")
        assert "\r\nContent-Type: application/json\r\n" in head
        assert f"\r\nHost: {queen.url.removeprefix('http://')}\r\n" in head
        assert json.loads(body) == {
            "worker_id": "w-1",
            "timestamp": "2026-01-02T03:04:05+00:00",
            "health_status": "degraded",
        }

    asyncio.run(scenario())


def test_a_coordinator_that_refuses_is_warned_of_once_and_its_return_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "worker.observers.heartbeat")
    busy = b"HTTP/1.1 503 Busy\r\n\r\n"

    async def scenario() -> None:
        async with coordinator(replies(busy, busy, busy, OK, OK, busy)) as queen:
            await beat(queen.url, 6)

    asyncio.run(scenario())
    assert [(record.levelname, record.getMessage().split("/v1/worker-heartbeat")[1]) for record in caplog.records] == [
        ("WARNING", ": the answer was HTTP/1.1 503 Busy"),
        ("INFO", " again"),
        ("WARNING", ": the answer was HTTP/1.1 503 Busy"),
    ]


@pytest.mark.parametrize("junk", [b"", b"\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"\xff" * 100_000])
def test_an_answer_that_is_no_http_success_stops_nothing(junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with coordinator(replies(junk)) as queen:
            assert len(await beat(queen.url, 3)) == 3

    asyncio.run(scenario())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_coordinator_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with coordinator(replies(OK)) as queen:
            url = queen.url
        assert len(await beat(url, 3)) == 3

    asyncio.run(scenario())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_coordinator_that_never_answers_is_given_up_after_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        released = asyncio.Event()

        async def never(writer: asyncio.StreamWriter) -> None:
            await released.wait()

        async with coordinator(never) as queen:
            assert len(await beat(queen.url, 2, timeout_s=0.05)) == 2
            released.set()

    asyncio.run(scenario())
    assert "TimeoutError" in caplog.text


def test_cancelling_stops_a_post_under_way_at_once() -> None:
    async def scenario() -> None:
        released, reached = asyncio.Event(), asyncio.Event()

        async def never(writer: asyncio.StreamWriter) -> None:
            reached.set()
            await released.wait()

        async with coordinator(never) as queen:
            async with asyncio.timeout(10):
                task = asyncio.ensure_future(beat(queen.url, 1, timeout_s=3600))
                await reached.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            released.set()

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http:///x", "127.0.0.1:80", "http://127.0.0.1:99999/"])
def test_an_impossible_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"not an http or https URL|[Pp]ort"):
        asyncio.run(post_json(url, b"{}", timeout_s=5))
