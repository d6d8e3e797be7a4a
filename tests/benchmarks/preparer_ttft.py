"""Time to the first token, against an earlier checkout: `python -m tests.benchmarks.preparer_ttft --before DIR`.

Both workers run all the time, on the bundled model and otherwise idle. A client sends short jobs, one at a time, to one
and the other in turns; which one is first is drawn. What counts is the median of the differences within the pairs: a
machine that is shared disturbs both of a pair alike. CPU time per job is that of gateway, engine and preparer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.attacks.wire import greet
from tests.benchmarks.probe import MARK, connect
from tests.benchmarks.reader import cpu_s
from tests.conformance.rawsocket import text
from tests.support.server import Server, is_preparer, serving

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
import worker
assert worker.__file__.startswith({root!r} + os.sep), worker.__file__
from worker.cli import main
sys.exit(main())
"""
WARM_UP_JOBS = 20
PAUSE_S = 0.002
"""Pause between two jobs: the worker is idle again."""

FORM = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
KINDS = {"short": {}, "form": {"response_format": FORM}}


@dataclass
class Side:
    """One worker, a connection to it, and what was measured, in ms."""

    server: Server
    connection: socket.socket
    times_ms: list[float] = field(default_factory=list)

    def job(self, number: int, extra: dict[str, object]) -> float:
        """Run a job of three tokens; return the time to the first in ms."""
        body = {
            "type": "create",
            "prompt": f"{number}. Tell me about foxes.",
            "max_tokens": 3,
            "temperature": 0,
            **extra,
        }
        begun_s, first_s = time.perf_counter(), 0.0
        self.connection.sendall(text(json.dumps(body)))
        seen = b""
        while b"end" not in (marks := MARK.findall(seen)):
            assert b"err" not in marks, seen
            data = self.connection.recv(1 << 16)
            assert data, "the worker closed the connection"
            seen += data
            if not first_s and b"tok" in MARK.findall(seen):
                first_s = time.perf_counter()
        return 1000 * (first_s - begun_s)

    def cpu(self) -> dict[str, float]:
        """Return CPU seconds so far, by process."""
        used = {"gateway": cpu_s(self.server.process.pid), "engine": 0.0, "preparer": 0.0}
        for pid in self.server.family():
            used["preparer" if is_preparer(pid) else "engine"] += cpu_s(pid)
        return used


@contextlib.contextmanager
def side(root: Path, flags: Sequence[str]) -> Iterator[Side]:
    """Run the worker of a checkout."""
    program = ("-c", PROGRAM.format(root=str(root.resolve())))
    with (
        serving(*flags, program=program, env={"PYTHONPATH": str(root.resolve())}) as server,
        connect(server.port) as connection,
    ):
        greet(connection, None)
        yield Side(server, connection)


def compare(before: Side, this: Side, jobs: int, kind: str) -> list[float]:
    """Run the jobs in turns; return the differences within the pairs, in ms. Those with no first token are left out."""
    extra = KINDS[kind]
    differences = []
    for number in range(-WARM_UP_JOBS, jobs):
        pair = [before, this]
        random.shuffle(pair)
        took_ms = {}
        for one in pair:
            took_ms[one is this] = one.job(number, extra)
            time.sleep(PAUSE_S)
        if number >= 0 and min(took_ms.values()) > 0:
            before.times_ms.append(took_ms[False])
            this.times_ms.append(took_ms[True])
            differences.append(took_ms[True] - took_ms[False])
    return differences


def report(name: str, one: Side, used: dict[str, float], jobs: int) -> None:
    """Print a row."""
    ordered = sorted(one.times_ms)
    p50, p90 = ordered[len(ordered) // 2], ordered[len(ordered) * 9 // 10]
    costs = ", ".join(f"{process} {1000 * spent_s / jobs:.2f}" for process, spent_s in used.items())
    print(f"| {name} | {p50:.2f} | {p90:.2f} | {costs} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--jobs", type=int, default=300, help="pairs of jobs (300)")
    parser.add_argument("--kind", choices=KINDS, default="short", help="what jobs (short)")
    parser.add_argument("--model", default="", help="model to serve (the bundled one)")
    asked = parser.parse_args(arguments)
    flags = ("--log-level", "error", *(("--model", asked.model) if asked.model else ()))
    with side(asked.before, flags) as before, side(ROOT, flags) as this:
        at_first = {name: one.cpu() for name, one in (("before", before), ("this", this))}
        differences = compare(before, this, asked.jobs, asked.kind)
        print("| | first token p50 ms | p90 ms | CPU ms per job |\n|---|---|---|---|")
        for name, one in (("before", before), ("this", this)):
            used = {process: spent_s - at_first[name][process] for process, spent_s in one.cpu().items()}
            report(name, one, used, asked.jobs + WARM_UP_JOBS)
    print(f"\nMedian of {len(differences)} paired differences: {statistics.median(differences):+.2f} ms")


if __name__ == "__main__":
    main()
