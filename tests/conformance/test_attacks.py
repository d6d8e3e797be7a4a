"""Whatever a stranger sends, with a key or without: nobody else waits for it, and memory does not grow by it.

The innocent are a stream and a client that asks for `/health`, each with a key of its own, on a connection of its own.
What they feel is compared with a quiet run before. The attacks are those of the benchmark `undisturbed`, which has
closer bounds and more figures; what each of them is told by the worker is tested elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from tests.benchmarks.attacks.wire import keys_file
from tests.benchmarks.disturbances import ATTACKS
from tests.benchmarks.undisturbed import FLAGS, Felt, Memory, Probes, disturb
from tests.support.server import Server, serving

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads waits for a core from /proc"),
    # On a worker that fails, what was sent is worked off for as long as that takes.
    pytest.mark.timeout(300),
]
EXCESS_MS_MAX = 1000.0
PEAK_MIB_MAX, KEPT_MIB_MAX = 64.0, 32.0
ROUNDS_MAX = 3
QUIET_S, SECONDS = 1.5, 2.5
QUIET_FOR_S = 20.0
"""How long a quiet run is compared with."""

KINDS = ("stream", "health")


class Bench:
    """A worker, and the innocent."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._probes = Probes(server, KINDS)
        self._quiet: tuple[float, Felt] | None = None
        self.last: Felt | None = None

    def round(self, case: str) -> tuple[dict[str, float], Memory]:
        """Return by how much the innocent waited longer than in a quiet run, in ms, and what became of memory."""
        if not self._probes.alive:
            # One that failed has failed its own test.
            self._probes.close()
            self._probes = Probes(self.server, KINDS)
        quiet = self.quiet()
        felt, memory = disturb(self.server, self._probes, case, SECONDS)
        self.last = felt
        return {name: felt.figures[name] - quiet.figures[name] for name in ("gap_ms", "slowest_ms")}, memory

    def quiet(self) -> Felt:
        """Return what is felt while nothing happens."""
        if self._quiet is None or time.monotonic() - self._quiet[0] > QUIET_FOR_S:
            felt = self._probes.measure(QUIET_S)
            self._quiet = time.monotonic(), felt
        return self._quiet[1]

    def close(self) -> None:
        """End the innocent."""
        self._probes.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with serving(*FLAGS, "--keys-file", str(keys_file(tmp_path_factory.mktemp("keys")))) as server:
        running = Bench(server)
        yield running
        running.close()


@pytest.mark.parametrize("case", ATTACKS)
def test_nobody_waits_and_memory_is_bounded(case: str, bench: Bench) -> None:
    """What stops others does so every time; what else happens on this machine does not: the median counts."""
    rounds: list[tuple[float, float, float, float]] = []
    while not rounds or (len(rounds) < ROUNDS_MAX and not _good(rounds[-1])):
        excess_ms, memory = bench.round(case)
        grown = memory.peak - memory.before, memory.after - memory.before
        rounds.append((excess_ms["slowest_ms"], excess_ms["gap_ms"], *grown))
    print(case, *(" ".join(f"{figure:.0f}" for figure in one) for one in rounds), sep=" | ")
    middle = sorted(rounds, key=_badness)[(len(rounds) - 1) // 2]
    assert _good(middle), dict(zip(("health_ms", "gap_ms", "peak_mib", "kept_mib"), middle, strict=True))


def _badness(figures: tuple[float, float, float, float]) -> float:
    bounds = (EXCESS_MS_MAX, EXCESS_MS_MAX, PEAK_MIB_MAX, KEPT_MIB_MAX)
    return max(figure / bound for figure, bound in zip(figures, bounds, strict=True))


def _good(figures: tuple[float, float, float, float]) -> bool:
    return _badness(figures) <= 1
