"""What goes wrong in a long life, against scripted peers: wrong keys, proxies, nothing to read, thousands of jobs."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
from jobwire_client import ConnectionFailed, JobCancelled, Refused, connect
from jobwire_client.subscription import Subscription
from scripted import Exchange, Frame, Link, scripted_http, scripted_worker
from test_session import OTHER, Keys
from test_sse import HEARTBEAT, answers, created, sse, streams
from test_websocket import ID, QUICK, end, events_of, in_loop, token

HELLO: Frame = {"type": "hello", "protocol": "jobwire.v1", "limits": {"heartbeat_s": 15}}


# ---- connections -----------------------------------------------------------------------------------------------------


@in_loop
async def test_a_key_that_is_refused_twice_in_a_row_is_wrong_after_a_cut_too() -> None:
    async def first(link: Link) -> None:
        await link.send(HELLO)
        await link.accept()
        await link.cut()

    async def refuse(link: Link) -> None:
        await link.socket.close(4401, "unknown key")

    keys = Keys()
    async with scripted_worker(first, refuse, greets=False) as peer, connect(peer.url, keys, **QUICK) as jw:
        with pytest.raises(ConnectionFailed, match="unknown key"):
            await jw.run("Hi", job_id=ID).text()
    assert (keys.asked, peer.connections) == (3, 3)


@pytest.mark.parametrize("first", [{"type": "error", "error": {"code": "bad_frame"}}, {}], ids=str)
@in_loop
async def test_who_does_not_say_hello_is_no_worker(first: Frame) -> None:
    async def script(link: Link) -> None:
        await link.send(first)
        await link.wait_closed()

    async with scripted_worker(script, greets=False) as peer:
        with pytest.raises(ConnectionFailed, match="hello") as failed:
            await connect(peer.url).__aenter__()
    causes = [failed.value.__cause__]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
        assert len(causes) < 9, "a cause of itself"


@in_loop
async def test_a_job_after_a_long_silence_does_not_wait_for_the_pause_again() -> None:
    """The pause after a cut passes whether or not a job wants the connection."""
    cut = asyncio.Event()

    async def first(link: Link) -> None:
        await link.cut()
        cut.set()

    async def second(link: Link) -> None:
        await link.accept()
        await link.send(end(1))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, backoff_s=(0.5, 0.5)) as jw:
        await cut.wait()
        await asyncio.sleep(0.6)
        async with asyncio.timeout(0.24):  # less than any pause
            await jw.run("Hi", job_id=ID).text()


@in_loop
async def test_a_client_that_was_never_opened_says_so() -> None:
    for transport in ("websocket", "sse"):
        options: Any = {"transport": transport}
        with pytest.raises(ConnectionFailed, match="async with") as failed:
            connect("http://127.0.0.1:1", **options).run("Hi")
        assert failed.value.code == "closed"


@pytest.mark.parametrize("transport", ["websocket", "sse"])
@in_loop
async def test_a_client_may_be_opened_again(transport: Any) -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.send(end(1))
        await link.wait_closed()

    http = (created, streams(sse(end(1)))) * 2
    async with scripted_worker(script) as peer, scripted_http(*http) as (url, _):
        jw = connect(peer.url if transport == "websocket" else url, transport=transport)
        for _ in range(2):
            async with jw:
                assert await jw.run("Hi", job_id=ID).text() == ""


@in_loop
async def test_a_reader_does_not_hurry_a_worker_that_asked_to_wait() -> None:
    """What is read meanwhile makes nothing be asked again before its time."""
    asked_at: list[float] = []

    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), token(2, "b", index=1), token(3, "c"))
        await link.cut()

    async def second(link: Link) -> None:
        asked_at.append(time.monotonic())
        await link.refuse(await link.receive("create"), "overloaded", 503, retriable=True, retry_after_ms=200)
        refused.set()
        assert (await link.accept())["after"] == "e-3"
        asked_at.append(time.monotonic())
        await link.send(end(4))
        await link.wait_closed()

    refused = asyncio.Event()
    async with scripted_worker(first, second) as peer, connect(peer.url, window=9, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await refused.wait()
        assert len([await anext(job) for _ in range(3)]) == 3
        assert await job.texts() == ["ac", "b"]
    assert asked_at[1] - asked_at[0] >= 0.2


# ---- over SSE --------------------------------------------------------------------------------------------------------


@in_loop
async def test_streams_that_are_cut_while_a_job_waits_long_are_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that ends every stream after a while must not end a job that waits in a queue for longer."""
    monkeypatch.setattr("jobwire_client.sse.STABLE_S", 0.03)

    async def waits(exchange: Exchange) -> None:
        await exchange.stream(HEARTBEAT)
        await asyncio.sleep(0.06)

    scripts = (created, *[waits] * 8, streams(sse(token(1, "a"), end(2))))
    async with (
        scripted_http(*scripts) as (url, _),
        connect(url, transport="sse", retry_timeout_s=0.2, **QUICK) as jw,
    ):
        assert await jw.run("Hi", job_id=ID).text() == "a"


@pytest.mark.parametrize("status", [502, 503, 504])
@in_loop
async def test_requests_wait_for_a_worker_that_restarts_behind_a_proxy(status: int) -> None:
    cancelled = asyncio.Event()
    away = answers(status, Retry_After="0")

    async def stream(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        await cancelled.wait()
        await exchange.send(sse(end(2, "cancelled")))

    async def deleted(exchange: Exchange) -> None:
        assert exchange.method == "DELETE"
        await exchange.answer_json(200, {"job_id": ID})
        cancelled.set()

    scripts = (away, created, stream, away, deleted)
    async with scripted_http(*scripts) as (url, _), connect(url, transport="sse", **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await anext(job)
        await job.cancel()
        await events_of(job)


# ---- a long life -----------------------------------------------------------------------------------------------------


def subscriptions() -> int:
    gc.collect()
    # Not isinstance, which asks each object for its class: modules that announce their end warn then.
    return sum(issubclass(type(thing), Subscription) for thing in gc.get_objects())


@in_loop
async def test_nothing_is_kept_of_jobs_that_are_over() -> None:
    """Read, dropped unread, left early, closed, refused by the worker, too large to be sent."""

    async def script(link: Link) -> None:
        while True:
            request = await link.receive()
            if request["type"] != "create":
                continue
            if request.get("prompt") == "refuse":
                await link.refuse(request, "queue_full", 429)
                continue
            job_id = request["job_id"]
            await link.send({"type": "accepted", "job_id": job_id, "ref": request["ref"], "state": "running"})
            if request.get("prompt") != "wait":
                await link.send(token(1, "a", job_id), token(2, "b", job_id, index=1), end(3, job_id=job_id))

    hello = {"limits": {"max_frame_bytes": 1000}}
    async with scripted_worker(script, hello=hello) as peer, connect(peer.url, window=2) as jw:
        for _ in range(50):
            await jw.run("read").text()
            jw.run("dropped")
            async for _ in jw.run("left"):
                break
            await (await jw.create("wait")).aclose()
            for prompt in ("refuse", "x" * 1000):
                with pytest.raises(Refused):
                    await jw.create(prompt)
        await jw.run("last").text()  # all before it is answered
        assert subscriptions() <= 1  # of the last one, a frame that is being worked on


@in_loop
async def test_over_sse_nothing_is_kept_of_jobs_that_are_over() -> None:
    async def serve(exchange: Exchange) -> None:
        if exchange.method == "POST":
            return await created(exchange)
        job_id = exchange.path.split("/")[3]
        await exchange.stream(sse(token(1, "a", job_id), token(2, "b", job_id, index=1), end(3, job_id=job_id)))
        return await exchange.finish()

    async with scripted_http(*[serve] * 62) as (url, _), connect(url, transport="sse", **QUICK) as jw:
        for _ in range(10):
            await jw.run("read").text()
            jw.run("dropped")
            async for _ in jw.run("left"):
                break
        await jw.run("last").text()
        while subscriptions():  # noqa: ASYNC110 - the last streams are about to close, which nobody tells
            await asyncio.sleep(0)


@in_loop
async def test_what_a_newer_worker_says_is_ignored() -> None:
    async def script(link: Link) -> None:
        await link.send({"type": "news", "job_id": ID, "ref": "1"}, {"type": "pong", "t": 5})
        await link.accept(features={"a": [1]})
        await link.send(
            {"type": "accepted", "job_id": ID, "ref": "77"}, {"type": "audio", "job_id": ID, "cursor": "e-1"}
        )
        await link.send(token(2, "a", voice={"name": "b"}), {"type": "end2", "job_id": OTHER}, end(3, mood="fine"))
        await link.wait_closed()

    hello = {"protocol": "jobwire.v1.7", "features": ["telepathy"], "limits": {"max_thoughts": 9}}
    async with scripted_worker(script, hello=hello) as peer, connect(peer.url) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "a"


@in_loop
async def test_a_cancel_while_there_is_no_connection_waits_for_one() -> None:
    cancelled = asyncio.Event()
    trying = asyncio.Event()

    async def first(link: Link) -> None:
        await link.send(HELLO)
        await link.accept()
        await link.send(token(1, "a"))
        await link.cut()

    async def second(link: Link) -> None:
        trying.set()
        await cancelled.wait()
        await link.send(HELLO)
        assert (await link.accept())["after"] == "e-1"
        await link.accept("cancel")
        await link.send(end(2, "cancelled"))
        await link.wait_closed()

    async with scripted_worker(first, second, greets=False) as peer, connect(peer.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await trying.wait()
        cancelling = asyncio.create_task(job.cancel())
        await asyncio.sleep(0)
        cancelled.set()
        await cancelling
        with pytest.raises(JobCancelled):
            await job.text()
