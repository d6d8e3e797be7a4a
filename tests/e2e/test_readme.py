"""The samples of README.md, run as they stand there against a real worker; only the address is another."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.e2e.client import expected_count
from tests.support.readme import README, sample

ADDRESS = "127.0.0.1:8080"
TIMEOUT_S = 60.0


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)


def test_the_websocket_sample_counts(worker_url: str) -> None:
    program = sample("python", "websockets").replace(ADDRESS, worker_url.removeprefix("http://"))
    done = run([sys.executable, "-c", program])
    assert done.stdout.startswith(expected_count(7, 20))
    assert "First token" in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_sse_sample_streams_to_its_end(worker_url: str) -> None:
    command = sample("sh", "curl -N").replace(ADDRESS, worker_url.removeprefix("http://"))
    events = re.findall(r'^data: \{"type":"(\w+)"', run(["bash", "-c", command]).stdout, re.MULTILINE)
    assert "token" in events
    assert events[-1] == "end"


def test_the_address_in_the_samples_is_the_default() -> None:
    assert f"http://{ADDRESS}" in README.read_text(encoding="utf-8")
