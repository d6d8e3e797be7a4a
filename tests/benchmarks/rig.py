"""What the delivery benchmark measures and what it measures with: ways, servers in processes of their own, the reader.

The server has a core of its own; the engine process and the reader share the other ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks.reader import Result, Task
from tests.support.server import descendants, serving

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {
    "--connections-max": 12_000,
    "--slots": 1024,
    "--jobs-per-principal-max": 4096,
    "--queue-jobs-max": 4096,
    "--queue-tokens-max": 1 << 40,
    "--orphan-ttl-s": 0.1,
    "--retention-s": 0,
    "--max-tokens-max": 1 << 20,
    "--log-level": "error",
}
PROGRAM = """
import os, sys
os.chdir({root!r})
sys.path.insert(0, {root!r})
import worker
assert worker.__file__.startswith({root!r} + os.sep), worker.__file__
from tests.benchmarks import paced_engine
paced_engine.serve()
"""
"""A worker of the checkout at `root`, on the paced engine of that checkout: where things are imported from differs."""

SETTLE_S = 0.5
"""Time in which the jobs that a reader left are cancelled, and what they held is freed."""


@dataclass(frozen=True)
class Way:
    """One way of delivery: which server, over what, and what a client asks for."""

    name: str
    server: str
    carrier: str
    jobs_per_socket: int = 1
    fields: dict[str, int] = field(default_factory=dict, hash=False)


JOBWIRE = (
    Way("Jobwire, WebSocket", "jobwire", "ws"),
    Way("Jobwire, WebSocket, coalesce_ms 20", "jobwire", "ws", fields={"coalesce_ms": 20}),
    Way("Jobwire, WebSocket, coalesce_ms 100", "jobwire", "ws", fields={"coalesce_ms": 100}),
    Way("Jobwire, WebSocket, 64 jobs per socket", "jobwire", "ws", jobs_per_socket=64),
    Way("Jobwire, SSE", "jobwire", "sse"),
)


@dataclass(frozen=True)
class Load:
    """How many streams flow at a time, and how fast each of them."""

    streams: int
    per_s: float

    @classmethod
    def parse(cls, text: str) -> Load:
        """Read `256x50`: 256 streams of 50 tokens per second. Raises ValueError for anything else."""
        streams, _, per_s = text.partition("x")
        return cls(int(streams), float(per_s))

    def __str__(self) -> str:
        return f"{self.streams} streams, {self.per_s:g} tokens/s each"


LOADS = (Load(256, 50.0), Load(1000, 20.0))


@dataclass(frozen=True)
class Running:
    """A server that is measured. A peer has no engine process."""

    port: int
    pid: int
    engine_pid: int = 0


def pin(pid: int, cores: set[int]) -> None:
    """Keep a process and all its threads on some cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def cores() -> tuple[set[int], set[int]]:
    """The server's core, and the others'."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others) or {first}


@contextlib.contextmanager
def jobwire(root: Path = ROOT) -> Iterator[Running]:
    """A whole worker of a checkout of the repository, on the paced engine."""
    arguments = [str(part) for pair in FLAGS.items() for part in pair]
    program = ("-c", PROGRAM.format(root=str(root.resolve())))
    with serving(*arguments, program=program, env={"PYTHONPATH": str(root.resolve())}) as server:
        pin(server.process.pid, cores()[0])
        children = descendants(server.process.pid)
        for child in children:
            pin(child, cores()[1])
        yield Running(server.port, server.process.pid, server.engine_pids()[0])


@contextlib.contextmanager
def peer(name: str) -> Iterator[Running]:
    """A peer in its own process."""
    command = [sys.executable, "-m", "tests.benchmarks.peers", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            pin(process.pid, cores()[0])
            yield Running(port, process.pid)
        finally:
            process.kill()


class Readers:
    """The process that reads."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.reader"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        pin(self._process.pid, cores()[1])

    def perform(self, task: Task) -> Result:
        """Do a task and return what it measured. Raises RuntimeError if it fails, with the reason above."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(task)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"no result of {task}")
        return Result(**json.loads(line))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def deliver(readers: Readers, server: Running, way: Way, load: Load, seconds: float) -> Result:
    """Measure one way at one load."""
    task = Task(
        port=server.port,
        pid=server.pid,
        engine_pid=server.engine_pid,
        way=way.carrier,
        streams=load.streams,
        per_s=load.per_s,
        seconds=seconds,
        jobs_per_socket=way.jobs_per_socket,
        fields=way.fields,
    )
    result = readers.perform(task)
    time.sleep(SETTLE_S)
    return result
