"""The places of a choice, entry by entry."""

from __future__ import annotations

from typing import get_args

import pytest

from worker.jobs.job import Choice
from worker.jobs.places import MOVES, Move, Place, next_place

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
ALL_MOVES: tuple[Move, ...] = get_args(Move)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("move", ALL_MOVES)
def test_every_place_meets_every_move(place: Place, move: Move) -> None:
    target = next((to for before, made, to in ALLOWED if (before, made) == (place, move)), None)
    if target is None:
        with pytest.raises(AssertionError, match=f"{place} cannot {move}"):
            next_place(place, move)
    else:
        assert next_place(place, move) == target


def test_the_table_speaks_of_every_place_and_move() -> None:
    assert set(MOVES) == set(PLACES)
    assert {move for row in MOVES.values() for move in row} == set(ALL_MOVES)
    assert MOVES["ended"] == {}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("move", ALL_MOVES)
def test_a_choice_moves_by_the_table_alone(place: Place, move: Move) -> None:
    choice = Choice(0, place=place)
    call = {
        "wait": lambda: choice.wait("7"),
        "start": lambda: choice.start(3, 1),
        "pause": choice.pause,
        "end": lambda: choice.end("stop", "x"),
    }[move]
    if move in MOVES[place]:
        call()
        assert choice.place == MOVES[place][move]
        assert choice.ended == (choice.finish is not None) == (move == "end")
    else:
        with pytest.raises(AssertionError, match="cannot"):
            call()
        assert choice == Choice(0, place=place)


def test_a_choice_keeps_what_each_move_brings() -> None:
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
