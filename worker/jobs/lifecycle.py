"""The life of a job as one table: which event may happen in which state, and where it leads. Absence is refusal."""

from __future__ import annotations

from typing import Literal, TypeAlias

from worker.events import (
    Admitted,
    Cancelled,
    Event,
    Expired,
    Failed,
    Finished,
    FirstToken,
    Note,
    Preempted,
    Progress,
    Queued,
    Resumed,
    Token,
    Tokenized,
)

JobState: TypeAlias = Literal["queued", "running", "completed", "failed", "cancelled", "expired"]

TRANSITIONS: dict[JobState, dict[type[Event], JobState]] = {
    "queued": {
        Queued: "queued",
        Tokenized: "queued",
        Note: "queued",
        Resumed: "queued",
        Admitted: "running",
        Failed: "failed",
        Cancelled: "cancelled",
        Expired: "expired",
    },
    "running": {
        Admitted: "running",
        Progress: "running",
        Token: "running",
        FirstToken: "running",
        Note: "running",
        Preempted: "queued",
        Resumed: "queued",
        Finished: "completed",
        Failed: "failed",
        Cancelled: "cancelled",
        Expired: "expired",
    },
    "completed": {},
    "failed": {},
    "cancelled": {},
    "expired": {},
}


def next_state(state: JobState, event: Event) -> JobState:
    """Return the state after `event`. Raises AssertionError for a transition that is not in the table: our bug."""
    target = TRANSITIONS[state].get(type(event))
    assert target is not None, f"{type(event).__name__} cannot happen to a job that is {state}"
    return target


def is_terminal(state: JobState) -> bool:
    """Return whether nothing can follow."""
    return not TRANSITIONS[state]
