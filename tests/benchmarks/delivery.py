"""What delivering a token costs: `python -m tests.benchmarks.delivery`, about five minutes, on Linux.

Jobwire over WebSocket and SSE, side by side with a bare `websockets` server that sends the same frames and with
FastAPI on uvicorn that sends a pydantic-encoded chunk per token. All send what a ticker produces, at a pace that all
can hold, so that CPU time per token and latency can be compared. Ways take turns, figures are medians of the rounds.

`--before DIR` compares with an earlier checkout of the repository instead (`tests/benchmarks/before.py`): for each of
Jobwire's ways and each load the median of the pairs' ratios of CPU time, with a 90 % interval of order statistics that
assumes nothing about how the ratios are distributed (`tests/benchmarks/pairs.py`). "unchanged" means that the interval
contains or lies below 1.03. All ways and loads take a quarter of an hour; `--only`, `--loads` and `--seconds` cut it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.before import Plan, compare, ways
from tests.benchmarks.pairs import PAIRS_MIN
from tests.benchmarks.reader import Result, Task
from tests.benchmarks.rig import JOBWIRE, LOADS, Load, Readers, Way, deliver, jobwire, peer

IDLE_CONNECTIONS = (1000, 10_000)
IDLE_S = 1.5
BASE = "FastAPI + uvicorn, SSE"
WAYS = (
    *JOBWIRE,
    Way("bare websockets server", "websockets", "ws"),
    Way(BASE, "fastapi", "sse"),
)


def print_delivery(rows: dict[Way, list[Result]], load: Load) -> None:
    """Print one table. Ratios are taken round by round: what disturbs the machine disturbs neighbours alike."""
    base = next(results for way, results in rows.items() if way.name == BASE)
    print(f"\n{load}\n")
    print(
        "| way | CPU ms per 1,000 tokens | of FastAPI | tokens per CPU-s | frames per CPU-s | tokens per frame ", end=""
    )
    print("| delivered | p50 ms | p99 ms |\n|---|---|---|---|---|---|---|---|---|")
    for way, results in rows.items():
        cost = [1e6 * one.cpu_s / one.tokens for one in results]
        ratios = [mine * other.tokens / (1e6 * other.cpu_s) for mine, other in zip(cost, base, strict=True)]
        rate = [one.tokens / one.wall_s / (load.streams * load.per_s) for one in results]
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
    print("\n| idle connections, KiB each | " + " | ".join(f"of {count:,}" for count in IDLE_CONNECTIONS) + " |")
    print("|---" * (1 + len(IDLE_CONNECTIONS)) + "|")
    for way in WAYS:
        if way.jobs_per_socket > 1 or way.fields:
            continue
        cells = [way.name]
        for count in IDLE_CONNECTIONS:
            with jobwire() if way.server == "jobwire" else peer(way.server) as server:
                # A first few connections bring what is needed once.
                readers.perform(Task(server.port, server.pid, way.carrier, 50, 0, 0.5))
                result = readers.perform(Task(server.port, server.pid, way.carrier, count, 0, IDLE_S))
            cells.append(f"{result.bytes_per_connection / 1024:.1f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def compare_peers(asked: argparse.Namespace) -> None:
    """Measure Jobwire beside the peers and print Markdown tables."""
    chosen = [way for way in WAYS if asked.only in way.name or way.name == BASE]
    print(f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, {asked.rounds} rounds in turns")
    readers = Readers()
    try:
        measure_idle(readers)
        with jobwire() as worker, peer("websockets") as plain, peer("fastapi") as api:
            servers = {"jobwire": worker, "websockets": plain, "fastapi": api}
            for load in asked.loads:
                rows: dict[Way, list[Result]] = {way: [] for way in chosen}
                for _ in range(asked.rounds):
                    for way in chosen:
                        rows[way].append(deliver(readers, servers[way.server], way, load, asked.seconds))
                print_delivery(rows, load)
    finally:
        readers.close()


def compare_before(asked: argparse.Namespace) -> None:
    """Measure this checkout beside an earlier one and print Markdown tables."""
    chosen = ways(asked.only)
    assert chosen, f"no way of Jobwire's has {asked.only!r} in its name"
    print(f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores; before: {asked.before}")
    compare(asked.before, Plan(chosen, asked.loads, asked.pairs, asked.seconds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="DIR", help="compare with this checkout, not with peers")
    parser.add_argument("--pairs", type=int, default=PAIRS_MIN, help=f"pairs with --before ({PAIRS_MIN})")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured beside peers (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each time (3)")
    parser.add_argument("--only", default="", help="only ways whose name contains this, and FastAPI beside peers")
    parser.add_argument(
        "--loads", type=Load.parse, nargs="+", default=LOADS, help="streams x tokens per second (256x50 1000x20)"
    )
    asked = parser.parse_args(arguments)
    compare_before(asked) if asked.before else compare_peers(asked)


if __name__ == "__main__":
    main()
