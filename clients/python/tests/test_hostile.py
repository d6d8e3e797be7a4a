"""A long life: jobs of every fate, proxies that cut, readers that never come."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from clock import Clock, settle
from jobwire_client import ConnectionFailed, Event, Refused, Token, connect
from jobwire_client.retry import STABLE_S
from jobwire_client.subscription import Subscription
from scripted import Exchange, Peer, scripted_http, scripted_worker
from steps import HEARTBEAT, ID, OTHER, QUICK, answers, created, end, events_of, in_loop, sse, streams, token


def subscriptions() -> int:
    gc.collect()
    # Not isinstance, which asks each object for its class: modules that announce their end warn then.
    return sum(issubclass(type(thing), Subscription) for thing in gc.get_objects())


@in_loop
async def test_nothing_is_kept_of_jobs_that_are_over() -> None:
    """Read, dropped unread, left early, closed, refused by the worker, too large to be sent."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.receive()
            if request["type"] != "create":
                continue
            if request.get("prompt") == "refuse":
                await peer.refuse(request, "queue_full", 429)
                continue
            job_id = request["job_id"]
            await peer.send({"type": "accepted", "job_id": job_id, "ref": request["ref"], "state": "running"})
            if request.get("prompt") != "wait":
                await peer.send(token(1, "a", job_id), token(2, "b", job_id, index=1), end(3, job_id=job_id))

    hello = {"limits": {"max_frame_bytes": 1000}}
    async with scripted_worker(script, hello=hello) as worker, connect(worker.url, window=2) as jw:
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
async def test_streams_that_are_cut_while_a_job_waits_long_are_no_outage(clock: Clock) -> None:
    """A proxy that ends every stream after a while must not end a job that waits in a queue for longer."""
    lasts_s = STABLE_S + 0.1

    async def waits(exchange: Exchange) -> None:
        await exchange.stream(HEARTBEAT)
        await settle()  # the client reads the stream now
        clock.advance(lasts_s)

    scripts = (created, *[waits] * 3, streams(sse(token(1, "a"), end(2))))
    async with (
        scripted_http(*scripts) as (url, _),
        connect(url, transport="sse", retry_timeout_s=lasts_s, **QUICK) as jw,
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


@in_loop
async def test_over_sse_a_job_that_nobody_reads_is_not_read_on() -> None:
    """TCP holds the writer back, and nothing is lost or doubled when the reader comes."""
    total = 20_000
    written = 0

    async def stream(exchange: Exchange) -> None:
        nonlocal written
        await exchange.stream()
        while written < total:
            written += 1
            await exchange.send(sse(token(written, f"{written} ", padding="x" * 1000)))
        await exchange.send(sse(end(total + 1)))
        await exchange.finish()

    async with (
        scripted_http(created, stream) as (url, _),
        connect(url, transport="sse", unread_bytes_max=100_000) as jw,
    ):
        job = await jw.create("Count", job_id=ID)
        while job._subscription.watching:  # noqa: ASYNC110 - until it is put down, which nothing announces
            await asyncio.sleep(0)
        before = -1
        while before != written:  # until the writer is stuck
            before = written
            await settle()
        assert written < total
        numbers = [int(word) for word in (await job.text()).split()]
        assert numbers == list(range(1, total + 1))


@in_loop
async def test_over_sse_a_job_closed_at_once_runs_all_the_same_and_frees_its_id() -> None:
    posted = asyncio.Event()

    async def accept(exchange: Exchange) -> None:
        await created(exchange)
        posted.set()

    async with scripted_http(accept, streams(sse(end(1)))) as (url, _), connect(url, transport="sse", **QUICK) as jw:
        await jw.run("Hi", job_id=ID, detach=True).aclose()
        await posted.wait()
        await jw.subscribe(OTHER).aclose()  # before anything was asked
        while True:
            with contextlib.suppress(ValueError):  # it is watched until the next turns of the loop
                again = jw.subscribe(OTHER)
                break
            await asyncio.sleep(0)
        assert [event async for event in again] != []


@in_loop
async def test_over_sse_closing_the_client_ends_every_wait() -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        await asyncio.Event().wait()

    events: list[Event] = []
    async with scripted_http(created, stream) as (url, _):
        async with connect(url, transport="sse") as jw:
            job = jw.run("Hi", job_id=ID)
            events.append(await anext(job))
            reading = asyncio.create_task(job.text())
            await asyncio.sleep(0)
        with pytest.raises(ConnectionFailed) as closed:
            await reading
        assert closed.value.code == "closed"
    assert isinstance(events[0], Token)
