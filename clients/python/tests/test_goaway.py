"""A worker that goes away: old jobs finish where they are, new ones go elsewhere."""

from __future__ import annotations

import asyncio
import time

import pytest
from jobwire_client import JobCancelled, connect
from scripted import Peer, scripted_worker
from steps import GOAWAY, ID, OTHER, QUICK, end, go_on_after_a, in_loop, serves, token


@in_loop
async def test_after_goaway_old_jobs_finish_and_new_ones_go_to_a_new_connection() -> None:
    second_is_up = asyncio.Event()
    old_may_finish = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"), GOAWAY)
        await old_may_finish.wait()
        await peer.accept("cancel")  # what is asked about an old job stays with it
        await peer.send(token(2, "b"), end(3, "cancelled"))
        await peer.wait_closed()
        assert peer.socket.close_code == 1000

    async def second(peer: Peer) -> None:
        second_is_up.set()
        assert (await peer.accept())["job_id"] == OTHER
        await peer.send(token(1, "new", job_id=OTHER), end(2, job_id=OTHER))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        old = jw.run("Hi", job_id=ID)
        await anext(old)
        new = jw.run("Hi", job_id=OTHER)
        assert await new.text() == "new"
        assert second_is_up.is_set()
        old_may_finish.set()
        await old.cancel()
        with pytest.raises(JobCancelled) as cancelled:
            await old.text()
        assert cancelled.value.text == "ab"
    assert worker.connections == 2


@in_loop
async def test_an_old_connection_that_ends_hands_its_jobs_over() -> None:
    second_is_up = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"), GOAWAY)
        await second_is_up.wait()
        await peer.socket.close(1012, "restart")

    async def second(peer: Peer) -> None:
        await peer.accept()
        second_is_up.set()
        resumed = await peer.accept()
        assert (resumed["job_id"], resumed["after"]) == (ID, "e-1")
        await peer.send(token(2, "b"), end(3), end(1, job_id=OTHER))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        old = jw.run("Hi", job_id=ID)
        await anext(old)
        new = jw.run("Hi", job_id=OTHER)
        assert [*await asyncio.gather(old.text(), new.text())] == ["ab", ""]
    assert worker.connections == 2


@in_loop
async def test_after_goaway_no_close_code_is_final() -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"), GOAWAY)
        await peer.socket.close(1000)

    async with scripted_worker(first, go_on_after_a) as worker, connect(worker.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"


@in_loop
async def test_without_jobs_a_goaway_closes_and_nothing_is_opened() -> None:
    left = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.send(GOAWAY)
        await peer.wait_closed()
        left.set()

    second = serves(token(1, "a"), end(2))

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        await left.wait()
        assert worker.connections == 1
        assert await jw.run("Hi", job_id=ID).text() == "a"


@in_loop
async def test_a_new_job_waits_through_a_restart() -> None:
    draining = serves(token(1, "a"), GOAWAY)

    async def dying(peer: Peer) -> None:
        await peer.cut()

    back = serves(token(1, "b", job_id=OTHER), end(2, job_id=OTHER))

    async with scripted_worker(draining, dying, dying, back) as worker, connect(worker.url, **QUICK) as jw:
        await anext(jw.run("Hi", job_id=ID))
        assert await jw.run("Hi", job_id=OTHER).text() == "b"
    assert worker.connections == 4


@in_loop
async def test_goaway_is_the_least_to_wait() -> None:
    cut_at = 0.0
    waited = 0.0

    async def first(peer: Peer) -> None:
        nonlocal cut_at
        await peer.accept()
        await peer.send({**GOAWAY, "retry_ms": 200})
        cut_at = time.monotonic()
        await peer.cut()

    async def second(peer: Peer) -> None:
        nonlocal waited
        waited = time.monotonic() - cut_at
        await peer.accept()
        await peer.send(end(1))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == ""
    assert waited >= 0.2
