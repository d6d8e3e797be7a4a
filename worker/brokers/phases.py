"""The phases of an engine as one table: in which phase what may happen, and where it leads. Absence is refusal."""

from __future__ import annotations

from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["loading", "ready", "restarting", "failed", "closed"]
"""Where an engine stands: "loading" is its first load, "restarting" lasts from its death until the next one is ready,
"failed" from a load that cannot succeed until one does, for it is tried again now and then."""

Happening: TypeAlias = Literal["started", "progressed", "loaded", "start_failed", "load_failed", "lost", "closed"]
"""What may happen to it: its process started, loaded some of the model, or all of it; the process ended before that, or
the model cannot be loaded; an engine that was ready died; the broker closed."""

PHASES: dict[Phase, dict[Happening, Phase]] = {
    "loading": {
        "started": "loading",
        "progressed": "loading",
        "loaded": "ready",
        "start_failed": "loading",
        "load_failed": "failed",
        "closed": "closed",
    },
    "ready": {
        "lost": "restarting",
        "closed": "closed",
    },
    "restarting": {
        "started": "restarting",
        "progressed": "restarting",
        "loaded": "ready",
        "start_failed": "restarting",
        "load_failed": "failed",
        "closed": "closed",
    },
    "failed": {
        "started": "failed",
        "progressed": "failed",
        "loaded": "ready",
        "start_failed": "failed",
        "load_failed": "failed",
        "closed": "closed",
    },
    "closed": {},
}


def next_phase(phase: Phase, happening: Happening) -> Phase:
    """Return the phase after `happening`. Raises AssertionError for one that is not in the table: our bug."""
    target = PHASES[phase].get(happening)
    assert target is not None, f"{happening} cannot happen to an engine that is {phase}"
    return target
