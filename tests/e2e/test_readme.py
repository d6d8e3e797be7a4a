"""The samples of README.md and worker/docs/, run as they stand against a real worker; only the address differs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.client import Socket, expected_count, new_id
from tests.support.node import node
from tests.support.readme import CLIENTS, README, ROOT, sample
from tests.support.server import Server

ADDRESS = "127.0.0.1:8080"
TIMEOUT_S = 60.0
STORY_CHARS = 100
"""Length that the shortest of the bundled model's stories has at least."""

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)


def at(url: str, text: str) -> str:
    """Return a sample with the address of a worker in place of the default one."""
    assert ADDRESS in text
    return text.replace(ADDRESS, url.removeprefix("http://"))


def test_the_python_client_tells_a_story(worker_url: str) -> None:
    program = at(worker_url, sample(README, "python", "jobwire_client"))
    assert len(program.splitlines()) == 6
    done = run([sys.executable, "-W", "error", "-c", program], PYTHONPATH=str(ROOT / "clients" / "python"))
    assert len(done.stdout) > STORY_CHARS
    assert not done.stderr


def test_the_javascript_client_tells_a_story(worker_url: str, tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "jobwire").symlink_to(ROOT / "clients" / "javascript")
    (tmp_path / "sample.mjs").write_text(at(worker_url, sample(README, "js", "jobwire")), encoding="utf-8")
    assert len(node("sample.mjs", cwd=tmp_path)) > STORY_CHARS


@needs_curl
def test_the_sse_sample_streams_to_its_end(worker_url: str) -> None:
    command = at(worker_url, sample(README, "sh", "curl -N"))
    events = re.findall(r'^data: \{"type":"(\w+)"', run(["bash", "-c", command]).stdout, re.MULTILINE)
    assert "token" in events
    assert events[-1] == "end"


@needs_curl
def test_without_accept_curl_gets_the_stream_of_an_older_worker(worker_url: str) -> None:
    """The trap that README.md describes below its sample."""
    command = at(worker_url, sample(README, "sh", "curl -N"))
    bare = command.replace("-H 'Accept: text/event-stream' ", "")
    assert bare != command
    answer = run(["bash", "-c", bare]).stdout
    assert "data: [DONE]" in answer or "sse_url" in answer
    assert "cursor" not in answer


async def test_the_frames_are_those_of_a_worker(server: Server) -> None:
    """Each line is accepted, or has only fields that the worker sends."""
    lines = re.findall(r"^([<>]) (\{.*\})$", README.read_text(encoding="utf-8"), re.MULTILINE)
    sent = [json.loads(frame) for way, frame in lines if way == ">"]
    received = [json.loads(frame) for way, frame in lines if way == "<"]
    (create,) = sent
    async with Socket(server) as socket:
        reading = await socket.run(**{**create, "job_id": new_id()} | {"type": "create"})
    seen = {frame["type"]: frame for frame in (*reading.accepted, *reading.frames)}
    for frame in received:
        assert frame.keys() <= seen[frame["type"]].keys()


def test_frames_by_hand_count(worker_url: str) -> None:
    program = at(worker_url, sample(CLIENTS, "python", "websockets"))
    done = run([sys.executable, "-c", program])
    assert done.stdout.startswith(expected_count(7, 20))
    assert "First token" in done.stderr


def test_the_address_in_the_samples_is_the_default() -> None:
    assert f"http://{ADDRESS}" in README.read_text(encoding="utf-8")
