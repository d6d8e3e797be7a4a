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
from tests.server import Server, serving, wait_until

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
