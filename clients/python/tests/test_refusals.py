"""Refusals and failures: which are raised, with which code, and which are waited out."""

from __future__ import annotations

import asyncio
import time

import pytest
from jobwire_client import ConnectionFailed, JobFailed, Refused, connect
from scripted import Peer, scripted_worker
from steps import ID, QUICK, cut_after, end, events_of, in_loop, serves, token


@in_loop
async def test_a_refusal_raises_with_its_code() -> None:
    async def script(peer: Peer) -> None:
        await peer.refuse(await peer.receive("create"), "queue_full", 429, retriable=True, retry_after_ms=700)
        await peer.refuse(await peer.receive("create"), "invalid_params", 422, errors=[{"pointer": "/top_p"}])
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        with pytest.raises(Refused, match="queue_full") as busy:
            await jw.create("Hi")
        assert (busy.value.code, busy.value.status, busy.value.retry_after_ms) == ("queue_full", 429, 700)
        with pytest.raises(Refused) as wrong:
            await jw.run("Hi", top_p=7).text()
        assert wrong.value.problem["errors"] == [{"pointer": "/top_p"}]
        assert wrong.value.retry_after_ms is None


@in_loop
async def test_a_request_too_large_is_refused_here_and_hurts_no_other() -> None:
    script = serves(token(1, "a"), end(2))

    async with (
        scripted_worker(script, hello={"limits": {"max_frame_bytes": 1000}}) as worker,
        connect(worker.url) as jw,
    ):
        with pytest.raises(Refused, match="frame_too_large"):
            await jw.create("x" * 1000)
        assert await jw.run("Hi", job_id=ID).text() == "a"


@in_loop
async def test_a_resume_that_is_refused_for_now_waits() -> None:
    first = cut_after(token(1, "a"))

    async def second(peer: Peer) -> None:
        await peer.refuse(await peer.receive("create"), "overloaded", 503, retriable=True, retry_after_ms=5)
        assert (await peer.accept())["after"] == "e-1"
        await peer.send(token(2, "b"), end(3))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"


@in_loop
async def test_a_reader_does_not_hurry_a_worker_that_asked_to_wait() -> None:
    """What is read meanwhile makes nothing be asked again before its time."""
    asked_at: list[float] = []

    first = cut_after(token(1, "a"), token(2, "b", index=1), token(3, "c"))

    async def second(peer: Peer) -> None:
        asked_at.append(time.monotonic())
        await peer.refuse(await peer.receive("create"), "overloaded", 503, retriable=True, retry_after_ms=200)
        refused.set()
        assert (await peer.accept())["after"] == "e-3"
        asked_at.append(time.monotonic())
        await peer.send(end(4))
        await peer.wait_closed()

    refused = asyncio.Event()
    async with scripted_worker(first, second) as worker, connect(worker.url, window=9, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await refused.wait()
        assert len([await anext(job) for _ in range(3)]) == 3
        assert await job.texts() == ["ac", "b"]
    assert asked_at[1] - asked_at[0] >= 0.2


@in_loop
async def test_a_lost_job_raises_and_is_not_run_again() -> None:
    first = cut_after(token(1, "a"))

    async def second(peer: Peer) -> None:
        await peer.refuse(await peer.receive("create"), "job_lost", 410)
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        with pytest.raises(Refused) as lost:
            await events_of(job)
        assert (lost.value.code, job.cursor) == ("job_lost", "e-1")


@pytest.mark.parametrize("status", ["failed", "expired"])
@in_loop
async def test_a_failed_job_raises(status: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        problem = {"code": "engine_failed", "status": 500, "detail": "It broke.", "retriable": True}
        await peer.send(token(1, "a"), end(2, status, error=problem))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url) as jw:
        job = jw.run("Hi", job_id=ID)
        for _ in range(2):  # asked again, it says the same
            with pytest.raises(JobFailed, match="It broke") as failed:
                await job.text()
            assert failed.value.code == "engine_failed"
        assert job.end is not None
        assert job.end.status == status


@pytest.mark.parametrize(
    ("close_code", "code"),
    [(1000, "closed_1000"), (4400, "protocol_abuse"), (4401, "unauthorized"), (4403, "forbidden"), (4406, "version"),
     (4408, "auth_timeout"), (4499, "closed_4499")],
)  # fmt: skip
@in_loop
async def test_final_close_codes_raise(close_code: int, code: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.socket.close(close_code, "because")

    async with scripted_worker(script) as worker, connect(worker.url, **QUICK) as jw:
        with pytest.raises(ConnectionFailed, match="because") as failed:
            await jw.run("Hi", job_id=ID).text()
        assert failed.value.code == code
        with pytest.raises(ConnectionFailed):
            jw.run("Again")
        assert worker.connections == 1
