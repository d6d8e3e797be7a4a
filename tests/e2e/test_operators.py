"""What happens around a worker, not in it: its output goes nowhere, its files are few, its launcher is strange."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.e2e.client import counting, expected_count
from tests.server import descendants, wait_until

LINES = 500
"""More lines of the log than a pipe takes."""

NOWHERE = {
    "no standard files": "<&- >&- 2>&-",
    "a full disk": ">/dev/full 2>/dev/full",
    "a pipe whose reader has gone": "> >(head -n 1 >/dev/null) 2>&1",
    "a pipe that nobody reads": "",
}


@contextmanager
def _worker(around: str, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Run a worker that a shell starts with `around` behind the command; its process, and a client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = f'exec "$0" -m worker serve --port {port} "$@" {around}'
    command = ["bash", "-c", line, sys.executable, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def ready() -> bool:
        assert process.poll() is None, "the worker has ended"
        try:
            return client.get("/v1/ready").is_success
        except httpx.TransportError:
            return False

    try:
        wait_until("the worker", ready, 60)
        yield process, client
    finally:
        client.close()
        process.kill()
        process.communicate()


def _count(client: httpx.Client) -> str:
    answer = client.post("/v1/jobs", json=counting(1, 9), headers={"Accept": "text/event-stream"})
    frames = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    return "".join(frame["text"] for frame in frames if frame["type"] == "token")


@pytest.mark.parametrize("around", NOWHERE.values(), ids=NOWHERE)
def test_a_worker_that_cannot_print_serves_on(around: str) -> None:
    with _worker(around, "--engine-restart-backoff-s", "0.05") as (process, client):
        for _ in range(LINES):
            client.get("/v1/jobs/there-is-no-such-job")
        assert _count(client) == expected_count(1, 9)
        # The next engine is announced, too.
        for pid in descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
        wait_until("another engine", lambda: "jobwire_engine_restarts_total 1" in client.get("/metrics").text)
        wait_until("it to be ready", lambda: 'state="ready"} 1' in client.get("/metrics").text)
        assert _count(client) == expected_count(1, 9)
        process.terminate()
        assert process.wait(60) == 0
