"""The places of a choice, entry by entry."""

from __future__ import annotations

from typing import get_args

import pytest

from worker.jobs.job import Choice
from worker.jobs.places import STEPS, Place, Step, follow

ALLOWED = [
    ("waiting", "wait", "waiting"),
    ("waiting", "start", "running"),
    ("running", "wait", "waiting"),
    ("running", "pause", "paused"),
    ("running", "end", "ended"),
    ("paused", "wait", "waiting"),
    ("paused", "start", "running"),
]
PLACES: tuple[Place, ...] = get_args(Place)
ALL_STEPS: tuple[Step, ...] = get_args(Step)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", ALL_STEPS)
def test_every_place_meets_every_step(place: Place, step: Step) -> None:
    target = next((to for before, taken, to in ALLOWED if (before, taken) == (place, step)), None)
    if target is None:
        with pytest.raises(AssertionError, match=f"{place} cannot {step}"):
            follow(place, step)
    else:
        assert follow(place, step) == target


def test_the_table_speaks_of_every_place_and_step() -> None:
    assert set(STEPS) == set(PLACES)
    assert {step for row in STEPS.values() for step in row} == set(ALL_STEPS)
    assert STEPS["ended"] == {}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_choice_moves_by_the_table_alone(place: Place, step: Step) -> None:
    choice = Choice(0, place=place)
    call = {
        "wait": lambda: choice.wait("7"),
        "start": lambda: choice.start(3, 1),
        "pause": choice.pause,
        "end": lambda: choice.end("stop", "x"),
    }[step]
    if step in STEPS[place]:
        call()
        assert choice.place == STEPS[place][step]
        assert choice.ended == (choice.finish is not None) == (step == "end")
    else:
        with pytest.raises(AssertionError, match="cannot"):
            call()
        assert choice == Choice(0, place=place)


def test_a_choice_keeps_what_each_step_brings() -> None:
    choice = Choice(0)
    choice.wait("7")
    choice.start(5, 2)
    choice.prefilled = 0.5
    choice.pause()
    assert choice.prefilled is None
    # What a paused choice finds in the cache is its own.
    choice.start(9, 9)
    assert (choice.lease, choice.prompt_tokens, choice.cached_tokens) == ("7", 5, 2)
    choice.wait("8")
    choice.start(6, 0)
    choice.end("stop_string", "END")
    assert (choice.lease, choice.prompt_tokens, choice.cached_tokens) == ("8", 6, 0)
    assert (choice.finish, choice.stop_sequence) == ("stop_string", "END")
