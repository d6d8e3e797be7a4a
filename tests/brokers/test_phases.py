"""The phases of an engine, entry by entry."""

from __future__ import annotations

from typing import get_args

import pytest

from worker.brokers.phases import PHASES, Happening, Phase, next_phase

ALLOWED = [
    ("loading", "started", "loading"),
    ("loading", "progressed", "loading"),
    ("loading", "start_failed", "loading"),
    ("loading", "loaded", "ready"),
    ("loading", "load_failed", "failed"),
    ("loading", "closed", "closed"),
    ("ready", "lost", "restarting"),
    ("ready", "closed", "closed"),
    ("restarting", "started", "restarting"),
    ("restarting", "progressed", "restarting"),
    ("restarting", "start_failed", "restarting"),
    ("restarting", "loaded", "ready"),
    ("restarting", "load_failed", "failed"),
    ("restarting", "closed", "closed"),
    ("failed", "started", "failed"),
    ("failed", "progressed", "failed"),
    ("failed", "start_failed", "failed"),
    ("failed", "load_failed", "failed"),
    ("failed", "loaded", "ready"),
    ("failed", "closed", "closed"),
]
ALL_PHASES: tuple[Phase, ...] = get_args(Phase)
HAPPENINGS: tuple[Happening, ...] = get_args(Happening)


@pytest.mark.parametrize("phase", ALL_PHASES)
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_every_phase_meets_every_happening(phase: Phase, happening: Happening) -> None:
    target = next((to for before, what, to in ALLOWED if (before, what) == (phase, happening)), None)
    if target is None:
        with pytest.raises(AssertionError, match=f"cannot happen to an engine that is {phase}"):
            next_phase(phase, happening)
    else:
        assert next_phase(phase, happening) == target


def test_the_table_speaks_of_every_phase_and_happening() -> None:
    assert set(PHASES) == set(ALL_PHASES)
    assert {happening for row in PHASES.values() for happening in row} == set(HAPPENINGS)


def test_an_engine_is_ready_only_after_a_load_and_restarts_only_after_being_ready() -> None:
    reached = {(happening, to) for row in PHASES.values() for happening, to in row.items()}
    assert {happening for happening, to in reached if to == "ready"} == {"loaded"}
    assert [phase for phase, row in PHASES.items() if "lost" in row] == ["ready"]
    assert PHASES["closed"] == {}
