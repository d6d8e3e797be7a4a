"""Where a choice of a job stands, as one table: which move is possible from which place. Absence is refusal."""

from __future__ import annotations

from typing import Literal, TypeAlias

Place: TypeAlias = Literal["waiting", "running", "paused", "ended"]
Move: TypeAlias = Literal["wait", "start", "pause", "end"]

MOVES: dict[Place, dict[Move, Place]] = {
    "waiting": {"wait": "waiting", "start": "running"},
    "running": {"wait": "waiting", "pause": "paused", "end": "ended"},
    "paused": {"wait": "waiting", "start": "running"},
    "ended": {},
}
"""A choice waits again from every place but the last, because an engine may die at any moment."""


def next_place(place: Place, move: Move) -> Place:
    """Return the place after `move`. Raises AssertionError for a move that is not in the table: our bug."""
    target = MOVES[place].get(move)
    assert target is not None, f"a choice that is {place} cannot {move}"
    return target
