"""Jobs that are given up: cancelled, abandoned, too late. Each ends once, and its slot serves the next job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.e2e.client import Frame, Reading, Socket, counting, expected_count, http, new_id, post_job, read_sse
from tests.support.server import Server, serving, wait_until

ORPHAN_TTL_S = 1.0
LONG: Frame = {"prompt": "Count from 1 to 300", "temperature": 0, "max_tokens": 1500, "ignore_eos": True}
LONG_PROMPT: Frame = {"prompt": "Repeat after me: " + "one two three four five six seven eight nine ten " * 25}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker with one slot, so that whoever holds it keeps all others waiting, and a slow prefill."""
    with serving("--slots", "1", "--prefill-tokens-per-step", "1", "--orphan-ttl-s", str(ORPHAN_TTL_S)) as running:
        yield running


def _assert_cancelled(reading: Reading, reason: str = "client") -> None:
    assert (reading.end["status"], reading.end["finish_reason"]) == ("cancelled", "cancelled")
    assert reading.end["reason"] == reason
    assert "error" not in reading.end


def _assert_promptly_served(following: Reading) -> None:
    """The next job did not wait for the 500 and more steps that the cancelled one had still to go."""
    assert following.text() == expected_count(1, 60)
    usage = following.end["usage"]
    ms_per_step = (usage["total_ms"] - usage["ttft_ms"]) / usage["completion_tokens"]
    assert usage["queue_ms"] < 500 * max(ms_per_step, 1)


async def test_cancel_in_the_queue(server: Server) -> None:
    async with Socket(server) as socket:
        with server.frozen_engine():
            running = await socket.create(**counting())
            waiting = await socket.create(**counting())
            after = await socket.create(**counting())
            reply = await socket.ask("cancel", job_id=waiting)
            assert (reply["type"], reply["job_id"], reply["state"]) == ("accepted", waiting, "ended")
            # It ends at once, although the engine does not move.
            await socket.finish(waiting)
        await socket.finish()
    _assert_cancelled(socket.readings[waiting])
    assert not socket.readings[waiting].tokens
    assert socket.readings[running].text() == socket.readings[after].text() == expected_count(1, 60)


async def test_cancel_in_prefill(server: Server) -> None:
    async with Socket(server) as socket:
        job_id = await socket.create(**LONG_PROMPT)
        reading = socket.readings[job_id]
        await socket.until(lambda: "prefill" in reading.actions)
        with server.frozen_engine():
            next_id = await socket.create(**counting())
            await socket.ask("cancel", job_id=job_id)
            await socket.finish(job_id)
        await socket.finish(next_id)
    _assert_cancelled(reading)
    assert not reading.tokens
    assert max(frame["progress"] for frame in reading.frames if "progress" in frame) < 1
    _assert_promptly_served(socket.readings[next_id])


async def test_cancel_in_decode_frees_the_slot_at_the_next_step(server: Server) -> None:
    async with Socket(server) as socket:
        job_id = await socket.create(**LONG)
        reading = socket.readings[job_id]
        await socket.until(lambda: len(reading.tokens) >= 5)
        with server.frozen_engine():
            next_id = await socket.create(**counting())
            await socket.ask("cancel", job_id=job_id)
            await socket.finish(job_id)
        await socket.finish(next_id)
    _assert_cancelled(reading)
    # The text so far is what it would have been, and the usage counts it.
    assert expected_count(1, 300).startswith(reading.text())
    assert 5 <= reading.end["usage"]["completion_tokens"] < LONG["max_tokens"] - 500
    _assert_promptly_served(socket.readings[next_id])


async def test_cancel_before_accepted(server: Server) -> None:
    async with Socket(server) as socket:
        job_id = new_id()
        reading = socket.readings[job_id] = Reading()
        await socket.send("create", **{**LONG, "job_id": job_id})
        await socket.send("cancel", job_id=job_id)
        await socket.finish(job_id)
        assert (await socket.run(**counting())).text() == expected_count(1, 60)
    assert [frame["type"] for frame in reading.accepted] == ["accepted", "accepted"]
    _assert_cancelled(reading)


async def test_cancel_over_http_is_idempotent(server: Server) -> None:
    async with http(server) as client:
        job_id = await post_job(client, **LONG)
        for _ in range(3):
            answer = await client.delete(f"/v1/jobs/{job_id}")
            assert answer.status_code == 200
            assert answer.json() == {"job_id": job_id, "status": "cancelled"}
        _assert_cancelled(await read_sse(client, job_id))
        assert (await client.delete(f"/v1/jobs/{new_id()}")).status_code == 404


async def test_cancel_of_an_ended_job_changes_nothing(server: Server) -> None:
    async with Socket(server) as socket, http(server) as client:
        whole = await socket.run(**counting(1, 5))
        job_id = whole.frames[0]["job_id"]
        assert (await socket.ask("cancel", job_id=job_id))["type"] == "accepted"
        assert (await client.delete(f"/v1/jobs/{job_id}")).status_code == 200
        assert (await read_sse(client, job_id)).story() == whole.story()
        reply = await socket.ask("cancel", job_id=new_id())
        assert reply["error"]["code"] == "job_not_found"


async def test_one_cancel_stops_one_job(server: Server) -> None:
    async with Socket(server) as socket:
        with server.frozen_engine():
            ids = [await socket.create(**counting(1, 20)) for _ in range(6)]
            await socket.ask("cancel", job_id=ids[2])
        readings = await socket.finish(*ids)
    assert [reading.end["status"] for reading in readings] == ["completed"] * 2 + ["cancelled"] + ["completed"] * 3


async def _ends_as(server: Server, job_id: str) -> str | None:
    """How a job ended; looking at the list of jobs is not following one of them."""
    async with http(server) as client:
        jobs = (await client.get("/v1/jobs")).json()["jobs"]
    status: str | None = next(job.get("status") for job in jobs if job["job_id"] == job_id)
    return status


async def test_a_job_that_nobody_follows_is_abandoned(server: Server) -> None:
    async with http(server) as client:
        with server.frozen_engine():
            async with Socket(server) as socket:
                left = await socket.create(**counting())
                detached = await socket.create(**counting(detach=True))
                follower = Socket(server)
                await follower.__aenter__()
                followed = await follower.create(**counting())
            never_followed = await post_job(client, **counting())
            for job_id in (left, never_followed):
                await _wait_ended(server, job_id)
        await follower.finish(followed)
        _assert_cancelled(await read_sse(client, left), "abandoned")
        _assert_cancelled(await read_sse(client, never_followed), "abandoned")
        assert (await read_sse(client, detached)).text() == expected_count(1, 60)
        assert follower.readings[followed].text() == expected_count(1, 60)
        await follower.cut()


async def _wait_ended(server: Server, job_id: str) -> None:
    while await _ends_as(server, job_id) is None:  # noqa: ASYNC110 - another process cannot wake us
        await asyncio.sleep(0.05)


async def test_a_deadline_passes_in_the_queue(server: Server) -> None:
    async with Socket(server) as socket:
        with server.frozen_engine():
            first = await socket.create(**counting())
            reading = await socket.run(**counting(deadline_ms=200))
        await socket.finish(first)
    assert not reading.tokens
    _assert_expired(reading)
    assert socket.readings[first].text() == expected_count(1, 60)


async def test_a_deadline_passes_in_decode(server: Server) -> None:
    async with Socket(server) as socket:
        job_id = await socket.create(**{**LONG, "deadline_ms": 3000})
        reading = socket.readings[job_id]
        await socket.until(lambda: len(reading.tokens) >= 5)
        with server.frozen_engine():
            await socket.finish(job_id)
        assert (await socket.run(**counting())).text() == expected_count(1, 60)
    # What was generated stays.
    assert len(reading.text()) >= 5
    assert expected_count(1, 300).startswith(reading.text())
    _assert_expired(reading)


def _assert_expired(reading: Reading) -> None:
    assert (reading.end["status"], reading.end["finish_reason"]) == ("expired", "deadline")
    error = reading.end["error"]
    assert (error["code"], error["status"]) == ("deadline_exceeded", 504)


def test_no_slot_is_lost(server: Server) -> None:
    """After all that was given up here, the worker is idle."""
    # An engine that has not run anything yet has told no numbers.
    wait_until("the worker to be idle", lambda: server.get("/health").json().get("running", 0) == 0)
    assert server.get("/health").json().get("waiting", 0) == 0
