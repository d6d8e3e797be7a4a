"""Trouble around a worker: output that nobody reads, few files, a bare environment, systemd, signals to all."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from socket import create_connection, create_server

import httpx
import pytest

from tests.e2e.client import Socket, counting, expected_count
from tests.support.server import alive, cpu_s, descendants, serving, wait_until
from worker import bundled, deploy
from worker.cli import EXIT_USAGE
from worker.config import Settings
from worker.transports.front.sockets import files_needed

LINES = 500
"""More lines of the log than a pipe holds."""

FILES = 96
UNIT = files(deploy).joinpath("jobwire.service")
MODEL = Path(bundled.__file__).with_name("model.gguf")

NOWHERE = {
    "no standard files": "<&- >&- 2>&-",
    "a full disk": ">/dev/full 2>/dev/full",
    "a pipe whose reader has gone": "> >(head -n 1 >/dev/null) 2>&1",
    "a pipe that nobody reads": "",
}


@contextmanager
def _worker(*flags: str, before: str = ":", after: str = "") -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Run a worker from a shell, with text before and after the command; yield its process and a client."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = f'{before}; exec "$0" -m worker serve --port {port} "$@" {after}'
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


@pytest.mark.parametrize("after", NOWHERE.values(), ids=NOWHERE)
def test_a_worker_that_cannot_print_serves_on(after: str) -> None:
    with _worker("--engine-restart-backoff-s", "0.05", after=after) as (process, client):
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


def test_it_asks_nothing_of_its_surroundings(tmp_path: Path) -> None:
    """A read-only folder, with a name that is hard to quote; no home; a locale without UTF-8."""
    folder = tmp_path / "my möde l's"
    folder.mkdir()
    model = folder / "the model.gguf"
    model.symlink_to(MODEL)
    folder.chmod(0o500)
    bare = f"cd {shlex.quote(str(folder))}; unset HOME LANG; export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
    with _worker("--model", model.name, before=bare) as (_, client):
        assert _count(client) == expected_count(1, 9)
        assert client.get("/", headers={"Accept": "text/html"}).is_success
        assert client.get("/docs").is_success
    assert list(folder.iterdir()) == [model]
    folder.chmod(0o700)


def test_with_few_files_there_are_fewer_connections() -> None:
    with _worker(before=f"ulimit -n {FILES}") as (process, client), ExitStack() as held:
        for _ in range(2 * FILES):
            held.enter_context(create_connection((client.base_url.host, client.base_url.port)))
        assert _count(client) == expected_count(1, 9)
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < FILES
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert len(lines) < 20
    assert sum(b'"connections_max": 24, "connections_keyless_max": 8' in line for line in lines) == 1


def test_when_files_run_out_connections_wait_and_the_log_stays_short() -> None:
    """Not for connections, which are fewer then, but for whatever else takes them: here the limit falls meanwhile."""
    with _worker() as (process, client):
        usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        open_now = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_now + 2, usual[1]))
        with ExitStack() as held:
            for _ in range(FILES):
                held.enter_context(create_connection((client.base_url.host, client.base_url.port)))
            before_s, began_s = cpu_s(process.pid), time.monotonic()
            wait_until("a few seconds to pass", lambda: time.monotonic() - began_s > 3)
            assert cpu_s(process.pid) - before_s < 1
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
        assert _count(client) == expected_count(1, 9)
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert len(lines) < 20
    assert sum(b"No connection can be accepted now: Too many open files" in line for line in lines) == 1


def test_without_files_for_connections_it_does_not_start() -> None:
    line = 'ulimit -n 64; exec "$0" -m worker serve --port 0'
    done = subprocess.run(["bash", "-c", line, sys.executable], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "jobwire: Only 64 files may be open here, of 4672 that are needed. Allow more: ulimit"
    )


# ---- systemd ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "jobwire.service"
    text = UNIT.read_text(encoding="utf-8")
    assert "/opt/jobwire/.venv/bin/jobwire serve" in text
    unit.write_text(text.replace("/opt/jobwire/.venv/bin/jobwire", f"{sys.executable} -m worker"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_suits_the_defaults() -> None:
    text, defaults = UNIT.read_text(encoding="utf-8"), Settings()
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert int(said["LimitNOFILE"]) >= files_needed(defaults)
    # After the drain connections flush, and the engine is closed.
    assert float(said["TimeoutStopSec"]) >= defaults.drain_timeout_s + 10
    assert said["RestartPreventExitStatus"] == str(EXIT_USAGE)


async def test_a_signal_to_all_processes_drains_too() -> None:
    """Ctrl-C in a terminal, containers and other KillModes of systemd send one."""
    with serving() as server:
        async with Socket(server) as socket:
            job_id = await socket.create(**counting(1, 290))
            await socket.until(lambda: bool(socket.readings[job_id].tokens))
            family = server.family()
            for pid in (server.process.pid, *family):
                os.kill(pid, signal.SIGTERM)
            await socket.finish()
        assert server.process.wait(60) == 0
        assert not any(map(alive, family))
    assert socket.readings[job_id].text() == expected_count(1, 290)
