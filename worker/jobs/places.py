"""Where a choice of a job stands, as one table: at which place which step is possible. Absence is refusal."""

from __future__ import annotations

from typing import Literal, TypeAlias

Place: TypeAlias = Literal["waiting", "running", "paused", "ended"]
Step: TypeAlias = Literal["wait", "start", "pause", "end"]

STEPS: dict[Place, dict[Step, Place]] = {
    "waiting": {"wait": "waiting", "start": "running"},
    "running": {"wait": "waiting", "pause": "paused", "end": "ended"},
    "paused": {"wait": "waiting", "start": "running"},
    "ended": {},
}
"""A choice waits again from every place but the last, because an engine may die at any moment."""


def follow(place: Place, step: Step) -> Place:
    """Return the place after `step`. Raises AssertionError for a step that is not in the table: our bug."""
    target = STEPS[place].get(step)
    assert target is not None, f"a choice that is {place} cannot {step}"
    return target
