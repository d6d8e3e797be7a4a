"""Cancel and update: requests about a job that runs or waits."""

from __future__ import annotations

import asyncio

import pytest
from jobwire_client import End, JobCancelled, Refused, connect
from scripted import Peer, scripted_worker
from steps import HELLO, ID, QUICK, end, events_of, in_loop, token


@in_loop
async def test_cancel_before_accepted() -> None:
    async def script(peer: Peer) -> None:
        create = await peer.receive("create")
        cancel = await peer.receive("cancel")
        assert cancel["job_id"] == create["job_id"] == ID
        await peer.send({"type": "accepted", "job_id": ID, "ref": create["ref"], "state": "queued"})
        await peer.send({"type": "accepted", "job_id": ID, "ref": cancel["ref"], "state": "queued"})
        await peer.send(end(1, "cancelled", reason="client"))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = jw.run("Hi", job_id=ID)
        await job.cancel()
        (last,) = await events_of(job)
        assert isinstance(last, End)
        assert last.status == "cancelled"
        await job.cancel()  # again is success, without a frame


@in_loop
async def test_a_cancel_survives_a_cut() -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"))
        await peer.receive("cancel")
        await peer.cut()

    async def second(peer: Peer) -> None:
        assert (await peer.accept())["after"] == "e-1"
        await peer.accept("cancel")
        await peer.send(end(2, "cancelled"))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await anext(job)
        await job.cancel()
        with pytest.raises(JobCancelled) as cancelled:
            await job.text()
        assert cancelled.value.text == "a"


@in_loop
async def test_a_cancel_while_there_is_no_connection_waits_for_one() -> None:
    cancelled = asyncio.Event()
    trying = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.send(HELLO)
        await peer.accept()
        await peer.send(token(1, "a"))
        await peer.cut()

    async def second(peer: Peer) -> None:
        trying.set()
        await cancelled.wait()
        await peer.send(HELLO)
        assert (await peer.accept())["after"] == "e-1"
        await peer.accept("cancel")
        await peer.send(end(2, "cancelled"))
        await peer.wait_closed()

    async with scripted_worker(first, second, greets=False) as worker, connect(worker.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await trying.wait()
        cancelling = asyncio.create_task(job.cancel())
        await asyncio.sleep(0)
        cancelled.set()
        await cancelling
        with pytest.raises(JobCancelled):
            await job.text()


@in_loop
async def test_a_closed_job_can_be_cancelled() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.receive("unsubscribe")
        left.set()
        assert (await peer.accept("cancel"))["job_id"] == ID
        await peer.wait_closed()

    left = asyncio.Event()
    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = await jw.create("Hi", job_id=ID)
        await job.aclose()
        await left.wait()
        await job.cancel()
        await jw.aclose()
        await job.aclose()  # too late, and harmless


@in_loop
async def test_update_changes_the_priority_and_tells_the_place() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept(state="queued", queue={"position": 9})
        request = await peer.accept("update", state="queued", queue={"position": 1})
        assert (request["job_id"], request["priority"]) == (ID, 9)
        await peer.refuse(await peer.receive("update"), "invalid_params", 422)
        await peer.send(token(1, "a"), end(2))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = await jw.create("Hi", job_id=ID, priority=1)
        assert (await job.update(priority=9))["queue"] == {"position": 1}
        with pytest.raises(Refused, match="invalid_params"):
            await job.update(priority=10)
        assert await job.text() == "a"  # a refused update is no failure of the job
        await job.update(priority=0)  # after the end there is nothing to ask


@in_loop
async def test_an_update_survives_a_cut() -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.receive("update")
        await peer.cut()

    async def second(peer: Peer) -> None:
        await peer.accept()
        assert (await peer.accept("update"))["priority"] == 7
        await peer.send(end(1))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await job.update(priority=7)
        assert await job.text() == ""
