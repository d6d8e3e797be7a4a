"""Each process is killed at several moments, while seeded jobs run and hostile forms are read: no text changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.client import Reading, Socket
from tests.support.server import Server, alive, descendants, serving, wait_until

JOBS, TOKENS = 16, 40
HOSTILE = {"type": "json_schema", "schema": {"type": "integer", "multipleOf": 999_983}}

MOMENTS = {"at once": 0, "early": 30, "in the middle": JOBS * TOKENS // 2}
"""Tokens that have arrived when the process is killed."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--engine-restart-backoff-s", "0.05", "--engine-deaths-per-job-max", "100", "--prepare-timeout-s", "3")
    with serving(*flags) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[str]:
    """The texts of all jobs when nothing happens."""

    async def run() -> list[str]:
        async with Socket(server) as socket:
            readings = await start(socket)
            await socket.finish()
        return [reading.text() for reading in readings]

    return asyncio.run(run())


def job(number: int) -> dict[str, Any]:
    return {
        "prompt": f"Tell me a story about number {number}",
        "max_tokens": TOKENS,
        "temperature": 0.8,
        "seed": number,
        "job_id": f"number-{number}-{os.urandom(4).hex()}",
    }


async def start(socket: Socket) -> list[Reading]:
    """Create all jobs at once, waiting for none."""
    readings = []
    for number in range(JOBS):
        fields = job(number)
        readings.append(socket.readings.setdefault(fields["job_id"], Reading()))
        await socket.send("create", **fields)
    return readings


def victims(server: Server, name: str) -> list[int]:
    """Return the pids of the engine, the preparer or its hands."""
    if name == "engine":
        return server.engine_pids()
    (preparer,) = set(server.preparer_pids()) & set(children(server.process.pid))
    return [preparer] if name == "preparer" else children(preparer)


def children(pid: int) -> list[int]:
    """Return the pids of living children alone."""
    below = descendants(pid)
    return [child for child in below if not any(child in descendants(other) for other in below if other != child)]


def whole(server: Server) -> bool:
    """Return whether engine, preparer and both hands are there."""
    return (
        len(server.engine_pids()) == 1 and len(server.preparer_pids()) == 3 and server.get("/v1/ready").json()["ready"]
    )


@pytest.mark.parametrize("hostile", [False, True], ids=["", "beside a hostile form"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["engine", "preparer", "hands"])
async def test_a_killed_process_changes_no_text(
    server: Server, undisturbed: list[str], name: str, moment: str, hostile: bool
) -> None:
    await asyncio.to_thread(wait_until, "all processes", lambda: whole(server))
    async with Socket(server) as socket, Socket(server) as other:
        if hostile:
            # Another prompt each time: what was refused is remembered.
            schema = {**HOSTILE["schema"], "minimum": int.from_bytes(os.urandom(3))}  # type: ignore[dict-item]
            await other.create(prompt="x", max_tokens=5, response_format={**HOSTILE, "schema": schema})
        readings = await start(socket)
        await socket.until(lambda: sum(len(one.tokens) for one in readings) >= MOMENTS[moment])
        for pid in await asyncio.to_thread(victims, server, name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await socket.finish()
        await other.finish()
    assert [reading.end["status"] for reading in readings] == ["completed"] * JOBS
    assert [reading.text() for reading in readings] == undisturbed
    assert all(error["error"]["code"] == "invalid_params" for error in other.errors)
    for reading in other.readings.values():
        assert (reading.end["status"], reading.end["error"]["code"]) == ("failed", "invalid_params")


@pytest.mark.parametrize("name", ["preparer", "hands"])
async def test_processes_that_are_stopped_are_replaced_and_no_text_changes(
    server: Server, undisturbed: list[str], name: str
) -> None:
    await asyncio.to_thread(wait_until, "all processes", lambda: whole(server))
    preparer, hands = [await asyncio.to_thread(victims, server, one) for one in ("preparer", "hands")]
    for pid in preparer if name == "preparer" else hands:
        os.kill(pid, signal.SIGSTOP)
    if name == "preparer":
        for pid in hands:
            os.kill(pid, signal.SIGKILL)
    async with Socket(server) as socket:
        readings = await start(socket)
        await socket.finish()
    assert [reading.text() for reading in readings] == undisturbed
    # The hand that had nothing to do may be stopped still.
    assert [pid for pid in (*preparer, *hands) if not alive(pid)]
    for pid in hands:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def test_a_hand_that_breaks_by_itself_takes_its_own_work_at_most(server: Server, undisturbed: list[str]) -> None:
    await asyncio.to_thread(wait_until, "all processes", lambda: whole(server))
    async with Socket(server) as socket:
        readings = await start(socket)
        for pid in await asyncio.to_thread(victims, server, "hands"):
            os.kill(pid, signal.SIGSEGV)
        await socket.finish()
    failed = [reading for reading in readings if reading.end["status"] == "failed"]
    assert len(failed) <= 1
    assert all(reading.end["error"]["code"] == "invalid_params" for reading in failed)
    same = [reading.text() == text for reading, text in zip(readings, undisturbed, strict=True)]
    assert same.count(False) == len(failed)


async def test_what_was_refused_for_its_cost_is_refused_at_create(server: Server) -> None:
    await asyncio.to_thread(wait_until, "all processes", lambda: whole(server))
    fields = {"prompt": "x", "max_tokens": 5, "response_format": HOSTILE}
    async with Socket(server) as socket:
        job_id = await socket.create(**fields)
        await socket.finish()
        error = socket.readings[job_id].end["error"]
        assert error["code"] == "invalid_params"
        assert "form_compile_ms_max" in error["detail"]
        reply = await socket.ask("create", **{**fields, "prompt": "another"})
        assert (reply["type"], reply["error"]["code"]) == ("error", "invalid_params")
        assert reply["error"]["detail"] == error["detail"]
        # The job that exists is attached to, not refused.
        again = await socket.ask("create", job_id=job_id, **fields)
        assert again["type"] == "accepted", again
    facts = server.get("/health").json()
    assert facts["preparer_hand_deaths"] > 0
    assert "jobwire_preparer_hand_deaths_total" in server.get("/metrics").text
