"""A whole worker on ExLlamaV2: 32 jobs over WebSocket, killed in the middle, and what /health says."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.engines import exported
from tests.e2e.client import Socket, counting, expected_count
from tests.engines.exllamav2 import cpu, host
from tests.support.server import Server, serving, wait_until

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

JOBS, LAST = 32, 25
LOAD_TIMEOUT_S = 150.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    arguments = ["--model", str(Path(exported().name) / "demo"), "--slots", "16", "--context-tokens", "512"]
    restart = ["--engine-restart-backoff-s", "0.05", "--engine-restart-backoff-max-s", "0.2"]
    with serving(*arguments, *restart, program=host.WORKER, ready=False) as running:
        yield running.wait_ready(LOAD_TIMEOUT_S)


def test_health_names_the_engine_and_its_attention(server: Server) -> None:
    health = server.get("/health").json()
    details = health["details"]
    assert (health["engine"], details["attention"], details["cache"]) == ("exllamav2", "sdpa", "fp16")


@pytest.mark.timeout(400)
async def test_32_jobs_over_websocket_survive_a_kill(server: Server) -> None:
    async with Socket(server) as socket:
        for _ in range(JOBS):
            await socket.create(**counting(1, LAST, max_tokens=100))
        readings = list(socket.readings.values())
        await socket.until(lambda: sum(len(one.text()) for one in readings) >= 300)
        (pid,) = server.engine_pids()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(wait_until, "the death to be noticed", lambda: _restarts(server) == 1)
        await asyncio.to_thread(server.wait_ready, LOAD_TIMEOUT_S)
        await socket.finish()
    assert {one.text() for one in readings} == {expected_count(1, LAST)}
    assert {one.end["status"] for one in readings} == {"completed"}
    assert any("resumed" in one.actions for one in readings)


def _restarts(server: Server) -> int:
    count: int = server.get("/health").json()["restarts"]
    return count


@pytest.mark.timeout(400)
async def test_long_answers_take_turns_in_a_small_cache_and_the_log_records_it() -> None:
    """Six counts of about 300 tokens in a cache of four pages: paused, reported, resumed, each number once."""
    model = str(Path(exported().name) / "demo")
    arguments = ["--model", model, "--slots", "8", "--context-tokens", "1024"]
    sliced = ["--cache-tokens", "1024", "--slice-tokens", "32"]
    with serving(*arguments, *sliced, program=host.WORKER, ready=False) as server:
        await asyncio.to_thread(server.wait_ready, LOAD_TIMEOUT_S)
        async with Socket(server) as socket:
            for _ in range(6):
                await socket.create(**counting(1, 99, max_tokens=900))
            await socket.finish()
        readings = list(socket.readings.values())
        assert {one.text() for one in readings} == {expected_count(1, 99)}
        paused = [one for one in readings if "preempted" in one.actions]
        assert paused
        for one in paused:
            # After each pause it is admitted again, and only its position is reported in between.
            assert one.actions.count("admitted") == one.actions.count("preempted") + 1


async def test_a_banned_string_is_never_delivered(server: Server) -> None:
    async with Socket(server) as socket:
        await socket.create(**counting(1, 20, max_tokens=60, banned_strings=["4 5 6"]))
        await socket.finish()
    (reading,) = socket.readings.values()
    assert reading.end["status"] == "completed" and reading.text().startswith("1 2 3")
    assert "4 5 6" not in reading.text()
