"""What others feel while something happens: `python -m tests.benchmarks.undisturbed`, a few minutes, on Linux.

Innocent are one stream, whose largest gap between token frames is measured, and a client that asks for `/health` a
hundred times a second; the engine itself reports the longest time between two of its steps. Each case
(`tests/benchmarks/disturbances.py`) is measured in turns with two controls: quiet, and a neutral process that uses as
much CPU time as the case cost on top of quiet, in its clients and in the worker together. What differs from quiet is
what others feel; what differs from neutral is not explained by a busy machine.

The measuring side does not count: stream and health are read by two processes that only wait for their sockets, and
the time in which these had no core is subtracted (`tests/benchmarks/probe.py`). Figures are medians of the rounds;
differences and ratios are medians of those within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.attacks.wire import keys_file
from tests.benchmarks.disturbances import CASES
from tests.benchmarks.reader import cpu_s, ended_cpu_s
from tests.support.server import Server, descendants, serving

WARM_UP_S = 0.3
SETTLE_S = 0.2
SETTLE_TIMEOUT_S = 120.0
IDLE_CORES = 0.2
FLAGS = ("--orphan-ttl-s", "0.1", "--log-level", "error")
FIGURES = {
    "gap_ms": "stream, largest gap",
    "step_gap_ms": "engine, longest time between two steps",
    "p50_ms": "/health, p50",
    "p99_ms": "/health, p99",
    "slowest_ms": "/health, slowest",
}
COLUMNS = ("ms", "quiet", "neutral", "case", "case - quiet", "case / quiet", "case - neutral", "case / neutral")


@dataclass(frozen=True)
class Felt:
    """What the innocent felt in one run, and what it cost: cores used by the worker and by those who disturbed it."""

    figures: dict[str, float]
    worker_cores: dict[int, float]
    others_cores: float

    def surplus_cores(self, quiet: Felt) -> float:
        """Return what it cost on top of quiet. A process that got to do less than in quiet saved nothing."""
        more = (cores - quiet.worker_cores.get(pid, 0.0) for pid, cores in self.worker_cores.items())
        return self.others_cores + sum(max(cores, 0.0) for cores in more)


@dataclass(frozen=True)
class Memory:
    """Resident memory of the gateway process, in MiB: before a case, at its largest, and when it was worked off."""

    before: float
    peak: float
    after: float


@dataclass(frozen=True)
class Round:
    """One case and its controls."""

    quiet: Felt
    neutral: Felt
    case: Felt
    memory: Memory

    def cells(self, name: str) -> list[float]:
        """Return the values of one figure, as the columns show them."""
        quiet, neutral, case = (one.figures[name] for one in (self.quiet, self.neutral, self.case))
        ratios = [case / control if control else math.nan for control in (quiet, neutral)]
        return [quiet, neutral, case, case - quiet, ratios[0], case - neutral, ratios[1]]


class Probes:
    """The processes that measure."""

    def __init__(self, server: Server, kinds: Sequence[str] = ("stream", "health", "steps")) -> None:
        self._server = server
        line = [sys.executable, "-m", "tests.benchmarks.probe"]
        self._processes = [
            subprocess.Popen([*line, kind, str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for kind in kinds
        ]

    def measure(self, seconds: float, disturbing: Sequence[int] = ()) -> Felt:
        """Measure for some seconds, while the processes named here do as they do."""
        begun_s, before = time.monotonic(), self._used_s(disturbing)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        figures: dict[str, float] = {}
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "a probe ended; its reason is above"
            figures |= json.loads(line)
        wall_s = time.monotonic() - begun_s
        cores = {pid: (used_s - before.get(pid, 0.0)) / wall_s for pid, used_s in self._used_s(disturbing).items()}
        return Felt(figures, cores, sum(cores.pop(pid) for pid in disturbing))

    def _used_s(self, others: Sequence[int]) -> dict[int, float]:
        worker = self._server.process.pid
        # Hands of the preparer that have ended count as well: their parent has what they used.
        return {pid: cpu_s(pid) + ended_cpu_s(pid) for pid in (worker, *descendants(worker), *others)}

    @property
    def alive(self) -> bool:
        """Whether none of them failed."""
        return all(process.poll() is None for process in self._processes)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def disturbing(*commands: tuple[str, str]) -> Iterator[list[int]]:
    """Run disturbances in processes of their own; yield their ids once they have begun."""
    line = [sys.executable, "-m", "tests.benchmarks.disturbances"]
    with contextlib.ExitStack() as stack:
        processes = []
        for command in commands:
            process = stack.enter_context(subprocess.Popen([*line, *command], stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline(), "a disturbance ended; its reason is above"
        yield [process.pid for process in processes]
        assert all(process.poll() is None for process in processes), "a disturbance ended; its reason is above"


def burners(cores: float) -> list[tuple[str, str]]:
    """Return the commands that use so many cores together: none for next to nothing."""
    count = math.ceil(cores)
    return [("burn", f"{cores / count:.3f}") for _ in range(count)] if cores > 0.01 else []


def settle(server: Server) -> None:
    """Wait until the worker is idle: a flood that is over may still be worked off."""
    deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
    used_s = math.inf
    while used_s > IDLE_CORES * SETTLE_S:
        assert time.monotonic() < deadline_s, f"the worker is still busy after {SETTLE_TIMEOUT_S} s"
        before_s = cpu_s(server.process.pid)
        time.sleep(SETTLE_S)
        used_s = cpu_s(server.process.pid) - before_s


def memory_mib(server: Server, name: str) -> float:
    """Return what the kernel calls `VmRSS` or, since `forget_peak`, `VmHWM` of the gateway process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found, status
    return int(found[1]) / 1024


def forget_peak(server: Server) -> None:
    """Begin `VmHWM` anew."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def disturb(server: Server, probes: Probes, case: str, seconds: float) -> tuple[Felt, Memory]:
    """Measure one case, once, and wait until it is worked off."""
    with disturbing((case, str(server.port))) as pids:
        before = memory_mib(server, "VmRSS")
        forget_peak(server)
        felt = probes.measure(seconds, pids)
    settle(server)
    return felt, Memory(before, memory_mib(server, "VmHWM"), memory_mib(server, "VmRSS"))


def measure(server: Server, probes: Probes, case: str, seconds: float) -> Round:
    """Measure one case and its controls, once."""
    quiet = probes.measure(seconds)
    felt, memory = disturb(server, probes, case, seconds)
    with disturbing(*burners(felt.surplus_cores(quiet))) as pids:
        neutral = probes.measure(seconds, pids)
    return Round(quiet, neutral, felt, memory)


def print_case(name: str, rounds: list[Round]) -> None:
    """Print the table of one case."""
    spent = [
        statistics.median(one.case.surplus_cores(one.quiet) for one in rounds),
        statistics.median(one.neutral.others_cores for one in rounds),
    ]
    print(f"\n{name}: {CASES[name].__doc__} Cores: {spent[0]:.2f}, neutral {spent[1]:.2f}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for figure, title in FIGURES.items():
        columns = zip(*(one.cells(figure) for one in rounds), strict=True)
        print(f"| {title} | {' | '.join(f'{statistics.median(column):.2f}' for column in columns)} |", flush=True)
    before, peak, after = (
        statistics.median(getattr(one.memory, name) for one in rounds) for name in ("before", "peak", "after")
    )
    print(f"\nMemory of the gateway: {before:.0f} MiB before, {peak:.0f} at most, {after:.0f} after.", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each case is measured (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each run, at least 3 for the steps (3)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which cases (all)")
    parser.add_argument("--model", default="", help="model to serve (the bundled one)")
    asked = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, {asked.rounds} rounds in turns")
    rounds: dict[str, list[Round]] = {case: [] for case in asked.cases}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(
            *FLAGS, "--keys-file", str(keys_file(Path(folder))), *(("--model", asked.model) if asked.model else ())
        ) as server,
    ):
        probes = Probes(server)
        try:
            probes.measure(min(asked.seconds, WARM_UP_S))
            for _ in range(asked.rounds):
                for case, measured in rounds.items():
                    measured.append(measure(server, probes, case, asked.seconds))
        finally:
            probes.close()
    for case, measured in rounds.items():
        print_case(case, measured)


if __name__ == "__main__":
    main()
