"""The engine process is killed, stopped, and killed again: every text stays exact, and no process is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from random import Random

import pytest

from tests.e2e.client import Frame, Reading, Socket, counting, expected_count, http, post_job, read_sse
from tests.support.server import Server, alive, serving, wait_until

JOBS, LAST, KILLS = 32, 100, 4
LONG_PROMPT = "Repeat after me: " + "one two three four five six seven eight nine ten " * 25


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker that replaces a dead engine without much delay."""
    with serving("--engine-restart-backoff-s", "0.05", "--engine-restart-backoff-max-s", "0.2") as running:
        yield running


def _kill(server: Server) -> int:
    """Kill the engine process that runs now, waiting for one if there is none yet; return its id."""
    wait_until("an engine process", lambda: bool(server.engine_pids()))
    (pid,) = server.engine_pids()
    os.kill(pid, signal.SIGKILL)
    return pid


def _restarts(server: Server) -> int:
    count: int = server.get("/health").json()["restarts"]
    return count


async def _recovered(server: Server, restarts: int) -> None:
    """Wait until so many deaths were noticed and an engine is ready again."""
    await asyncio.to_thread(wait_until, "the death to be noticed", lambda: _restarts(server) == restarts)
    await asyncio.to_thread(server.wait_ready)


@pytest.mark.parametrize("temperature", [0, 0.8])
async def test_kills_at_random_moments_under_counting_jobs(server: Server, temperature: float) -> None:
    random, before = Random(temperature), _restarts(server)
    async with Socket(server) as socket, http(server) as client:
        for _ in range(JOBS // 2):
            await socket.create(**counting(1, LAST, temperature=temperature))
        ids = [await post_job(client, **counting(1, LAST, temperature=temperature)) for _ in range(JOBS // 2)]
        streams = [Reading() for _ in ids]
        reading = asyncio.gather(*(read_sse(client, *pair) for pair in zip(ids, streams, strict=True)))
        readings = [*socket.readings.values(), *streams]
        killed = []
        for _ in range(KILLS):
            goal = sum(len(one.text()) for one in readings) + random.randint(200, 1500)
            # Each kill comes after new text, so no job is under suspicion.
            await socket.until(lambda: sum(len(one.text()) for one in readings) >= goal)  # noqa: B023 - awaited here
            killed.append(_kill(server))
            await _recovered(server, before + len(killed))
        await socket.finish()
        await reading
    assert {one.text() for one in readings} == {expected_count(1, LAST)}
    assert {one.end["status"] for one in readings} == {"completed"}
    for one in readings:
        assert "engine_restarted" in one.actions
        assert one.actions.index("engine_restarted") < one.actions.index("resumed")
    assert not any(alive(pid) for pid in killed)
    assert len(server.engine_pids()) == 1
    assert _restarts(server) == before + KILLS


async def _with_and_without_a_kill(server: Server, job: Frame, tokens: int) -> tuple[Reading, Reading]:
    """Run a job twice, the second time with an engine that dies after so many token frames: the text is the same."""
    async with Socket(server) as socket:
        undisturbed = await socket.run(**job)
        job_id = await socket.create(**job)
        reading = socket.readings[job_id]
        await socket.until(lambda: len(reading.tokens) >= tokens)
        _kill(server)
        await socket.finish(job_id)
    assert "resumed" in reading.actions
    assert reading.text() == undisturbed.text()
    return undisturbed, reading


async def test_a_seeded_text_is_the_same_with_and_without_a_kill(server: Server) -> None:
    job: Frame = {"prompt": "Tell me a story about an owl", "temperature": 0.9, "seed": 11, "max_tokens": 150}
    undisturbed, reading = await _with_and_without_a_kill(server, job, 20)
    assert reading.end["usage"]["completion_tokens"] == undisturbed.end["usage"]["completion_tokens"]


async def test_a_healed_text_begins_once_with_and_without_a_kill(server: Server) -> None:
    job: Frame = {"prompt": "Once upon a time there was a f", "raw": True, "token_healing": True, "max_tokens": 200}
    job |= {"temperature": 0.5, "seed": 3, "ignore_eos": True}
    undisturbed, reading = await _with_and_without_a_kill(server, job, 3)
    assert reading.end["usage"]["prompt_tokens"] == undisturbed.end["usage"]["prompt_tokens"]
    assert reading.end["usage"]["completion_tokens"] == 200


async def test_kills_while_the_next_engine_loads(server: Server) -> None:
    async with Socket(server) as socket:
        job_id = await socket.create(**counting(1, LAST))
        reading = socket.readings[job_id]
        await socket.until(lambda: len(reading.tokens) >= 20)
        for _ in range(3):
            pid = _kill(server)
            gone = [[], [pid]]
            await asyncio.to_thread(wait_until, "the next process", lambda: server.engine_pids() not in gone)  # noqa: B023
        await socket.finish(job_id)
    assert reading.text() == expected_count(1, LAST)
    # Only the first of them had the job in it.
    assert reading.actions.count("engine_restarted") == 1


async def test_choices_and_structure_survive_a_kill(server: Server) -> None:
    pattern = "(word ){60}end"
    async with Socket(server) as socket:
        several = await socket.create(**counting(1, LAST, n=3))
        form = {"type": "regex", "pattern": pattern}
        guided = await socket.create(prompt="Hi", temperature=1, max_tokens=500, response_format=form)
        readings = [socket.readings[several], socket.readings[guided]]
        await socket.until(lambda: all(len(one.text()) >= 40 for one in readings))
        _kill(server)
        await socket.finish()
    assert [readings[0].text(index) for index in range(3)] == [expected_count(1, LAST)] * 3
    assert readings[1].text() == "word " * 60 + "end"
    assert all("resumed" in one.actions for one in readings)


async def test_jobs_that_only_waited_are_none_the_wiser() -> None:
    with serving("--slots", "1", "--engine-restart-backoff-s", "0.05") as server:
        async with Socket(server) as socket:
            with server.frozen_engine():
                running, waiting = [await socket.create(**counting(1, LAST)) for _ in range(2)]
            await socket.until(lambda: len(socket.readings[running].tokens) >= 5)
            _kill(server)
            await socket.finish()
        assert socket.readings[running].text() == socket.readings[waiting].text() == expected_count(1, LAST)
        assert "resumed" in socket.readings[running].actions
        assert "resumed" not in socket.readings[waiting].actions


async def test_a_job_that_takes_the_engine_down_again_and_again_fails_alone() -> None:
    """Whenever the job is admitted, the engine dies while it reads the job's long prompt."""
    flags = ("--prefill-tokens-per-step", "1", "--engine-restart-backoff-s", "0.05", "--engine-deaths-per-job-max", "2")
    with serving(*flags) as server:
        async with Socket(server) as socket:
            bystander = await socket.create(**counting(1, LAST))
            await socket.until(lambda: len(socket.readings[bystander].tokens) >= 5)
            killer = await socket.create(prompt=LONG_PROMPT)
            reading, kills = socket.readings[killer], 0
            while not reading.ended:
                await socket.until(lambda: reading.ended or reading.actions.count("admitted") > kills)  # noqa: B023
                if not reading.ended:
                    _kill(server)
                    kills += 1
            await socket.finish(bystander)
        assert reading.end["status"] == "failed"
        assert (reading.end["error"]["code"], reading.end["error"]["status"]) == ("engine_failed", 500)
        assert kills == 3
        assert not reading.tokens
        assert socket.readings[bystander].text() == expected_count(1, LAST)
        assert server.get("/health").json()["status"] == "healthy"


async def test_a_hanging_engine_is_replaced() -> None:
    with serving("--engine-stall-timeout-s", "1", "--engine-restart-backoff-s", "0.05") as server:
        async with Socket(server) as socket, http(server) as client:
            job_id = await socket.create(**counting(1, LAST))
            reading = socket.readings[job_id]
            await socket.until(lambda: len(reading.tokens) >= 5)
            (hung,) = server.engine_pids()
            os.kill(hung, signal.SIGSTOP)
            # The gateway is as responsive as ever meanwhile.
            assert (await client.get("/health")).status_code == 200
            waiting = await socket.create(**counting(1, 20))
            await socket.finish()
        assert reading.text() == expected_count(1, LAST)
        assert "engine_restarted" in reading.actions
        assert socket.readings[waiting].text() == expected_count(1, 20)
        assert not alive(hung)


async def test_an_idle_engine_that_dies_is_replaced_too(server: Server) -> None:
    before = _restarts(server)
    _kill(server)
    await _recovered(server, before + 1)
    async with Socket(server) as socket:
        reading = await socket.run(**counting())
    assert reading.text() == expected_count(1, 60)
    assert "engine_restarted" not in reading.actions


async def test_a_killed_gateway_takes_the_engine_with_it() -> None:
    with serving() as server:
        async with Socket(server) as socket:
            job_id = await socket.create(**counting(1, 300))
            await socket.until(lambda: len(socket.readings[job_id].tokens) >= 5)
            family = server.family()
            assert family
            server.process.kill()
            await asyncio.to_thread(wait_until, "the engine to end", lambda: not any(map(alive, family)), 10)
