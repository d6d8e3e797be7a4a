"""This checkout against an earlier one: the same reader, the same ways, in pairs.

The earlier one runs by this interpreter, with its own worker and its own paced engine. Both workers run all the time
and are measured in turns; which one is first alternates, for what disturbs a shared machine disturbs neighbours alike.
Costs are CPU time per token that was delivered: time on the wall says little where others compute beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks import pairs
from tests.benchmarks.rig import JOBWIRE, Load, Readers, Running, Way, deliver, jobwire

COLUMNS = (
    "way",
    "gateway, CPU ms per 1,000 tokens: before",
    "this",
    "this / before",
    "90 % interval",
    "verdict",
    "engine, the same: this / before",
    "90 % interval",
)


@dataclass
class Costs:
    """CPU seconds per token of both sides, pair by pair."""

    this: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """This one's costs in those of the one before."""
        return [this / before for this, before in zip(self.this, self.before, strict=True)]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    ways: Sequence[Way]
    loads: Sequence[Load]
    pairs: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """What was found of one way at one load."""

    gateway: Costs
    engine: Costs

    def __str__(self) -> str:
        gateway, engine = pairs.interval(self.gateway.ratios), pairs.interval(self.engine.ratios)
        cells = [
            *(f"{1e6 * pairs.interval(costs).median:.1f}" for costs in (self.gateway.before, self.gateway.this)),
            f"{gateway.median:.3f}",
            f"{gateway.low:.3f} to {gateway.high:.3f}",
            pairs.verdict(self.gateway.ratios),
            f"{engine.median:.3f}",
            f"{engine.low:.3f} to {engine.high:.3f}",
        ]
        return " | ".join(cells)


def measure(readers: Readers, this: Running, before: Running, way: Way, load: Load, plan: Plan) -> Row:
    """Measure one way at one load, in pairs."""
    row = Row(Costs(), Costs())
    sides = [(this, row.gateway.this, row.engine.this), (before, row.gateway.before, row.engine.before)]
    for _ in range(plan.pairs):
        for server, gateway, engine in sides:
            result = deliver(readers, server, way, load, plan.seconds)
            gateway.append(result.cpu_s / result.tokens)
            engine.append(result.engine_cpu_s / result.tokens)
        sides.reverse()
    return row


def compare(root: Path, plan: Plan) -> None:
    """Measure a plan against the checkout at `root` and print Markdown tables."""
    readers = Readers()
    try:
        with jobwire() as this, jobwire(root) as before:
            # What is needed once is brought before the first pair, on both sides.
            for server in (this, before):
                deliver(readers, server, plan.ways[0], Load(1, 50.0), 0.2)
            for load in plan.loads:
                print(
                    f"\n{load}; pairs: {plan.pairs}\n\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True
                )
                for way in plan.ways:
                    print(f"| {way.name} | {measure(readers, this, before, way, load, plan)} |", flush=True)
    finally:
        readers.close()


def ways(only: str) -> list[Way]:
    """Return Jobwire's ways whose names contain a text."""
    return [way for way in JOBWIRE if only in way.name]
