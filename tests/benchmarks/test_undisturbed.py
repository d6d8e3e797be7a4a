"""The benchmark of what others feel works: each case for a fraction of a second, against a real worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.benchmarks.attacks.wire import keys_file
from tests.benchmarks.disturbances import CASES
from tests.benchmarks.undisturbed import FIGURES, FLAGS, Felt, Memory, Probes, Round, burners, measure, print_case
from tests.support.server import Server, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads waits for a core from /proc")
SECONDS = 0.2
SHOWN = ("none", "hostile_forms", "json_pings", "refused_handshakes", "endless_health")
"""One of each kind: `tests/conformance/test_attacks.py` runs them all."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(*FLAGS, "--keys-file", str(keys_file(tmp_path_factory.mktemp("keys")))) as running:
        yield running


@pytest.fixture(scope="module")
def probes(worker: Server) -> Iterator[Probes]:
    measuring = Probes(worker)
    yield measuring
    measuring.close()


# A flood is worked off for as long as the machine needs.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", SHOWN)
def test_a_case_is_measured_with_its_controls(
    case: str, worker: Server, probes: Probes, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = measure(worker, probes, case, SECONDS)
    for felt in (measured.quiet, measured.neutral, measured.case):
        assert felt.figures["frames"] > 0
        assert felt.figures["answers"] > 0
        # The engine's own figure comes too late for so short a run, now and then.
        assert {name for name in FIGURES if not felt.figures[name] > 0} <= {"step_gap_ms"}
        assert felt.figures["p50_ms"] <= felt.figures["p99_ms"] <= felt.figures["slowest_ms"]
    print_case(case, [measured])
    printed = capsys.readouterr().out
    assert f"{case}: {CASES[case].__doc__}" in printed
    assert all(f"| {title} | " in printed for title in FIGURES.values())
    assert 0 < measured.memory.before <= measured.memory.peak
    assert f"{measured.memory.peak:.0f} at most" in printed


def test_a_case_costs_what_its_clients_use_and_what_each_process_of_the_worker_uses_on_top_of_quiet() -> None:
    quiet = Felt({}, {1: 0.25, 2: 0.75}, 0.0)
    assert Felt({}, {1: 1.0, 2: 0.5, 3: 0.125}, 0.5).surplus_cores(quiet) == 0.5 + 0.75 + 0.125


@pytest.mark.parametrize(("cores", "shares"), [(0.001, []), (0.5, [0.5]), (1.5, [0.75, 0.75])])
def test_burners_share_the_cost(cores: float, shares: list[float]) -> None:
    assert [float(share) for _, share in burners(cores)] == shares


def test_differences_and_ratios_are_within_a_round() -> None:
    quiet, neutral, case = (Felt({"gap_ms": ms}, {}, 0.0) for ms in (2.0, 4.0, 8.0))
    assert Round(quiet, neutral, case, Memory(0.0, 0.0, 0.0)).cells("gap_ms") == [2.0, 4.0, 8.0, 6.0, 4.0, 4.0, 2.0]
