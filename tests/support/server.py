"""A real worker for tests: `jobwire serve` in its own process, on a free port, gone when the test ends."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

START_TIMEOUT_S = 60.0


def wait_until(what: str, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for a condition; fail with `what` was waited for. Polling is for foreign processes, which cannot wake us."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def descendants(pid: int) -> list[int]:
    """Return the pids of all living children, grandchildren, ... of a process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        direct = children.get(todo.pop(), [])
        found += direct
        todo += direct
    return [child for child in found if alive(child)]


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _line(pid: int) -> bytes:
    """Return the command line of a process, nothing for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_preparer(pid: int) -> bool:
    """Return whether a process is a preparer or one of its hands."""
    line = _line(pid)
    # Those of benchmarks and tests are functions.
    return b"worker.processes.preparer" in line or b".prepare()" in line


class Server:
    """One running worker. `output` collects what it prints. Old launchers give no `command`.

    `program` is what Python runs: the worker, or a test's own that becomes it.
    """

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        command: tuple[str, ...] = ("serve",),
        program: tuple[str, ...] = ("-m", "worker"),
    ) -> None:
        line = [sys.executable, *program, *command, "--port", "0", *arguments]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("JOBWIRE_")}
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean | (env or {})
        )
        self.output: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._pump = threading.Thread(target=self._read, daemon=True)
        self._pump.start()
        try:
            self.url = self._wait_for_line(r"Jobwire listens on (\S+)")
        except BaseException:
            self.process.kill()
            raise
        self.port = int(self.url.rpartition(":")[2])
        self.ws_url = self.url.replace("http", "ws", 1) + "/v1/ws"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            self._lines.put(line)
        self._lines.put(None)

    def _wait_for_line(self, pattern: str) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            assert line is not None, "the worker ended: " + "\n".join(self.output)
            if found := re.search(pattern, line):
                return found.group(1)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> Server:
        """Wait until the model is loaded."""
        wait_until("the model to be loaded", lambda: bool(self.get("/v1/ready").json()["ready"]), timeout_s)
        return self

    def get(self, path: str, **options: object) -> httpx.Response:
        """GET a path of the worker."""
        return httpx.get(self.url + path, timeout=30, **options)  # type: ignore[arg-type]

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        """POST JSON to a path of the worker."""
        return httpx.post(self.url + path, json=body, timeout=30, **options)  # type: ignore[arg-type]

    def family(self) -> list[int]:
        """Return the pids of all processes beside the gateway."""
        return descendants(self.process.pid)

    def engine_pids(self) -> list[int]:
        """Return the pids of the engine process and what belongs to it.

        One that was forked and does not run its own program yet is left out: the gateway waits for that, and would for
        ever if it were stopped.
        """
        gateway = _line(self.process.pid)
        return [pid for pid in self.family() if not is_preparer(pid) and _line(pid) != gateway]

    def preparer_pids(self) -> list[int]:
        """Return the pids of the preparer and its hands, the preparer first."""
        return sorted(pid for pid in self.family() if is_preparer(pid))

    def kill_engine(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the engine process."""
        for pid in self.engine_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextlib.contextmanager
    def frozen_engine(self) -> Iterator[None]:
        """Let no engine step happen within a `with` block: what a client does there is done before the next step."""
        self.kill_engine(signal.SIGSTOP)
        try:
            yield
        finally:
            self.kill_engine(signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Return the resident memory of the gateway process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self, timeout_s: float = 60.0) -> int:
        """Ask it to end and return its exit status; kill it with all descendants if it does not."""
        family = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        finally:
            for pid in (self.process.pid, *family):
                if alive(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self._pump.join(5)
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextlib.contextmanager
def serving(
    *arguments: str,
    env: dict[str, str] | None = None,
    ready: bool = True,
    command: tuple[str, ...] = ("serve",),
    program: tuple[str, ...] = ("-m", "worker"),
) -> Iterator[Server]:
    """Run a worker for the length of a `with` block."""
    server = Server(*arguments, env=env, command=command, program=program)
    try:
        yield server.wait_ready() if ready else server
    finally:
        server.stop()
