"""Jobs that are not read, for now or for good: merging, unsubscribing, leaving."""

from __future__ import annotations

import asyncio

import pytest
from jobwire_client import End, Token, connect
from scripted import Peer, scripted_worker
from steps import ID, QUICK, end, events_of, in_loop, serves, token


@in_loop
async def test_tokens_that_wait_are_read_as_one() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(*(token(n, f"{n} ", ids=[n]) for n in range(1, 6)), token(6, "other", index=1), end(7))
        await peer.accept(job_id="second-job-012345")
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = jw.run("Count", job_id=ID)
        await jw.create("Hi", job_id="second-job-012345")  # accepted after all events of the first are here
        merged, other, last = await events_of(job)
        assert merged == Token(ID, "e-5", "1 2 3 4 5 ", n=5, ids=(1, 2, 3, 4, 5))
        assert other == Token(ID, "e-6", "other", index=1)
        assert isinstance(last, End)
        assert await job.text(1) == "other"


@in_loop
async def test_an_unread_job_is_put_down_and_taken_up_again() -> None:
    """The unread job costs bounded memory here, the other one flows on, and no text is lost or doubled."""
    other = "second-job-012345"
    many = 30  # few enough for one burst

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.accept()
        put_down = asyncio.create_task(peer.receive("unsubscribe"))
        sent = 0
        while not put_down.done():
            sent += 1
            await peer.send(token(sent, f"{sent} "))
            await asyncio.sleep(0)
        assert (await put_down)["job_id"] == ID
        await peer.send(*(token(n, f"{n} ") for n in range(sent + 1, sent + 4)))  # on their way when it was put down
        await peer.send(*(token(n, f"{n} ", job_id=other) for n in range(1, many)), end(many, job_id=other))
        request = await peer.receive("create")
        after = int(request["after"].removeprefix("e-"))
        assert 0 < after <= sent
        await peer.send(token(sent + 3, f"{sent + 3} "))  # still from before
        await peer.send({"type": "accepted", "job_id": ID, "ref": request["ref"], "state": "running"})
        last = sent + 10
        await peer.send(*(token(n, f"{n} ") for n in range(after + 1, last + 1)), end(last + 1))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url, unread_bytes_max=10_000) as jw:
        unread, flowing = jw.run("Count", job_id=ID), jw.run("Count", job_id=other)
        assert await flowing.text() == "".join(f"{n} " for n in range(1, many))
        numbers = [int(word) for word in (await unread.text()).split()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 20


@in_loop
async def test_a_job_that_is_put_down_is_not_taken_up_by_a_reconnect() -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send(*(token(n, f"{n} ") for n in range(1, 101)))
        await peer.receive("unsubscribe")
        await peer.cut()

    back = asyncio.Event()

    async def second(peer: Peer) -> None:
        back.set()
        request = await peer.accept("subscribe")  # the other job comes first: nobody reads the first one yet
        await peer.send(end(1, job_id=request["job_id"]))
        after = int((await peer.accept())["after"].removeprefix("e-"))
        await peer.send(*(token(n, f"{n} ") for n in range(after + 1, 121)), end(121))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, unread_bytes_max=5_000, **QUICK) as jw:
        job = jw.run("Count", job_id=ID)
        await back.wait()
        assert await jw.subscribe("second-job-012345").text() == ""
        assert await job.text() == "".join(f"{n} " for n in range(1, 121))


@in_loop
async def test_aclose_unsubscribes_and_frees_the_id() -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"))
        assert (await peer.receive("unsubscribe"))["job_id"] == ID
        left.set()
        assert "after" not in await peer.accept("subscribe")
        await peer.send(token(1, "a"), token(2, "b"), end(3))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = jw.run("Hi", job_id=ID)
        await anext(job)
        await job.aclose()
        assert await events_of(job) == []
        with pytest.raises(ValueError, match="watches"):
            jw.subscribe(ID)  # not before the unsubscribe is sent
        await left.wait()
        assert await jw.subscribe(ID).text() == "ab"


@in_loop
async def test_a_job_closed_at_once_runs_all_the_same() -> None:
    async def script(peer: Peer) -> None:
        assert (await peer.accept())["detach"]
        assert (await peer.receive("unsubscribe"))["job_id"] == ID
        done.set()
        await peer.wait_closed()

    done = asyncio.Event()
    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        await jw.run("Hi", job_id=ID, detach=True).aclose()
        await done.wait()


@in_loop
async def test_a_loop_left_early_can_be_taken_up() -> None:
    script = serves(token(1, "a"), token(2, "b", index=1), token(3, "c"), end(4))

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = jw.run("Hi", job_id=ID)
        async for _ in job:
            break
        assert await job.text() == "ac"
