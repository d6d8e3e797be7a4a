"""What delivering a token costs: `python -m tests.benchmarks.delivery`, about five minutes, on Linux.

Jobwire over WebSocket and SSE, side by side with a bare `websockets` server that sends the same frames and with
FastAPI on uvicorn that sends a pydantic-encoded chunk per token. All send what a ticker produces, at a pace that all
can hold, so that CPU time per token and latency can be compared. Ways take turns, figures are medians of the rounds.
The server has a core of its own; the engine process and the reader share the other ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks import paced_engine
from tests.benchmarks.reader import Result, Task
from tests.support.server import descendants, serving

OPEN_FILES = 8192
IDLE_CONNECTIONS = 1000
IDLE_S = 1.5
CONCURRENT = ((256, 50.0), (1000, 20.0))
BASE = "FastAPI + uvicorn, SSE"
FLAGS = {
    "--slots": 1024,
    "--jobs-per-principal-max": 4096,
    "--queue-jobs-max": 4096,
    "--queue-tokens-max": 1 << 40,
    "--orphan-ttl-s": 0.1,
    "--retention-s": 0,
    "--max-tokens-max": 1 << 20,
    "--log-level": "error",
}


@dataclass(frozen=True)
class Way:
    """One way of delivery: which server, over what, and what a client asks for."""

    name: str
    server: str
    carrier: str
    jobs_per_socket: int = 1
    fields: dict[str, int] = field(default_factory=dict, hash=False)


WAYS = (
    Way("Jobwire, WebSocket", "jobwire", "ws"),
    Way("Jobwire, WebSocket, coalesce_ms 20", "jobwire", "ws", fields={"coalesce_ms": 20}),
    Way("Jobwire, WebSocket, coalesce_ms 100", "jobwire", "ws", fields={"coalesce_ms": 100}),
    Way("Jobwire, WebSocket, 64 jobs per socket", "jobwire", "ws", jobs_per_socket=64),
    Way("Jobwire, SSE", "jobwire", "sse"),
    Way("bare websockets server", "websockets", "ws"),
    Way(BASE, "fastapi", "sse"),
)


@dataclass(frozen=True)
class Running:
    """A server that is measured."""

    port: int
    pid: int


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
def jobwire() -> Iterator[Running]:
    """A whole worker on the paced engine."""
    arguments = [str(part) for pair in FLAGS.items() for part in pair]
    with serving(*arguments, program=paced_engine.WORKER) as server:
        pin(server.process.pid, cores()[0])
        for child in descendants(server.process.pid):
            pin(child, cores()[1])
        yield Running(server.port, server.process.pid)


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


def deliver(readers: Readers, servers: dict[str, Running], way: Way, streams: int, per_s: float, s: float) -> Result:
    """Measure one way at one load."""
    server = servers[way.server]
    task = Task(server.port, server.pid, way.carrier, streams, per_s, s, way.jobs_per_socket, way.fields)
    result = readers.perform(task)
    # The jobs that were left are cancelled, and what they held is freed.
    time.sleep(0.5)
    return result


def print_delivery(rows: dict[Way, list[Result]], streams: int, per_s: float) -> None:
    """Print one table. Ratios are taken round by round: what disturbs the machine disturbs neighbours alike."""
    base = next(results for way, results in rows.items() if way.name == BASE)
    print(f"\n{streams} streams, {per_s:g} tokens/s each\n")
    print(
        "| way | CPU ms per 1,000 tokens | of FastAPI | tokens per CPU-s | frames per CPU-s | tokens per frame ", end=""
    )
    print("| delivered | p50 ms | p99 ms |\n|---|---|---|---|---|---|---|---|---|")
    for way, results in rows.items():
        cost = [1e6 * one.cpu_s / one.tokens for one in results]
        ratios = [mine * other.tokens / (1e6 * other.cpu_s) for mine, other in zip(cost, base, strict=True)]
        rate = [one.tokens / one.wall_s / (streams * per_s) for one in results]
        cells = [
            way.name,
            f"{_median(cost):.1f}",
            f"{_median(ratios):.2f}",
            f"{_median([one.tokens / one.cpu_s for one in results]):,.0f}",
            f"{_median([one.frames / one.cpu_s for one in results]):,.0f}",
            f"{_median([one.tokens / max(one.frames, 1) for one in results]):.2f}",
            f"{100 * _median(rate):.0f} %",
            f"{_median([one.p50_ms for one in results]):.1f}",
            f"{_median([one.p99_ms for one in results]):.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def _median(values: list[float]) -> float:
    return statistics.median(values)


def measure_idle(readers: Readers) -> None:
    """Print what an idle connection holds, on servers that are new: memory that was used once is not given back."""
    print(f"\nMemory per idle connection, of {IDLE_CONNECTIONS}\n\n| way | KiB |\n|---|---|")
    for way in WAYS:
        if way.jobs_per_socket > 1 or way.fields:
            continue
        with jobwire() if way.server == "jobwire" else peer(way.server) as server:
            # A first few connections bring what is needed once.
            readers.perform(Task(server.port, server.pid, way.carrier, 50, 0, 0.5))
            result = readers.perform(Task(server.port, server.pid, way.carrier, IDLE_CONNECTIONS, 0, IDLE_S))
        print(f"| {way.name} | {result.bytes_per_connection / 1024:.1f} |", flush=True)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each time (3)")
    parser.add_argument("--only", default="", help="only ways whose name contains this, and FastAPI")
    asked = parser.parse_args()
    ways = [way for way in WAYS if asked.only in way.name or way.name == BASE]
    print(f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, {asked.rounds} rounds in turns")
    readers = Readers()
    try:
        measure_idle(readers)
        with jobwire() as worker, peer("websockets") as plain, peer("fastapi") as api:
            servers = {"jobwire": worker, "websockets": plain, "fastapi": api}
            for streams, per_s in CONCURRENT:
                rows: dict[Way, list[Result]] = {way: [] for way in ways}
                for _ in range(asked.rounds):
                    for way in ways:
                        rows[way].append(deliver(readers, servers, way, streams, per_s, asked.seconds))
                print_delivery(rows, streams, per_s)
    finally:
        readers.close()


if __name__ == "__main__":
    main()
