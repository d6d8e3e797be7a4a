"""The state machine, entry by entry."""

from __future__ import annotations

from typing import get_args

import pytest

from worker.errors import EngineFailed
from worker.events import (
    TERMINAL,
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
    Usage,
)
from worker.jobs.lifecycle import TRANSITIONS, JobState, is_terminal, next_state

USAGE = Usage(prompt_tokens=1, completion_tokens=0, cached_tokens=0, queue_ms=0, total_ms=0)
PROBLEM = EngineFailed("It broke.").problem()
EVENTS: dict[str, Event] = {
    "queued": Queued(1),
    "tokenized": Tokenized(1, b"1234"),
    "admitted": Admitted(3),
    "progress": Progress(1, 2),
    "token": Token("a"),
    "first_token": FirstToken(40),
    "preempted": Preempted("room is needed"),
    "resumed": Resumed(2),
    "note": Note(actor="a", action="b", human="c"),
    "finished": Finished(finish_reason="stop", usage=USAGE),
    "failed": Failed(PROBLEM, USAGE),
    "cancelled": Cancelled("client", USAGE),
    "expired": Expired(PROBLEM, USAGE),
}
ALLOWED = [
    ("queued", "queued", "queued"),
    ("queued", "tokenized", "queued"),
    ("queued", "note", "queued"),
    ("queued", "resumed", "queued"),
    ("queued", "admitted", "running"),
    ("queued", "failed", "failed"),
    ("queued", "cancelled", "cancelled"),
    ("queued", "expired", "expired"),
    ("running", "admitted", "running"),
    ("running", "progress", "running"),
    ("running", "token", "running"),
    ("running", "first_token", "running"),
    ("running", "note", "running"),
    ("running", "preempted", "queued"),
    ("running", "resumed", "queued"),
    ("running", "finished", "completed"),
    ("running", "failed", "failed"),
    ("running", "cancelled", "cancelled"),
    ("running", "expired", "expired"),
]
STATES: tuple[JobState, ...] = get_args(JobState)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", EVENTS)
def test_every_state_meets_every_event(state: JobState, name: str) -> None:
    target = next((to for before, event, to in ALLOWED if (before, event) == (state, name)), None)
    if target is None:
        with pytest.raises(AssertionError, match="cannot happen"):
            next_state(state, EVENTS[name])
    else:
        assert next_state(state, EVENTS[name]) == target


def test_the_table_speaks_of_every_state_and_event() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert {type(event) for event in EVENTS.values()} == {kind for row in TRANSITIONS.values() for kind in row}


def test_nothing_follows_a_terminal_state_and_only_terminal_events_lead_there() -> None:
    for row in TRANSITIONS.values():
        for event, target in row.items():
            assert is_terminal(target) == issubclass(event, TERMINAL)
    assert [state for state in STATES if is_terminal(state)] == ["completed", "failed", "cancelled", "expired"]
