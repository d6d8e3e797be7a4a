"""The sentences: one for every event that is not text or an end."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import EngineFailed
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
    Record,
    Resumed,
    Terminal,
    Token,
    Usage,
)
from worker.observers.narration import CUTE, Fields, narrate

JOB = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"
USAGE = Usage(prompt_tokens=1, completion_tokens=0, cached_tokens=0, queue_ms=0, total_ms=0)
PROBLEM = EngineFailed("It broke.").problem()


def told(event: Event) -> Fields:
    """Return the narration of an event."""
    fields = narrate(JOB, Record(1, 1234, event))
    assert fields is not None
    return fields


@pytest.mark.parametrize(
    ("event", "actor", "action", "human", "phase"),
    [
        (Queued(1), "scheduler", "queued", "Next in line", "queued"),
        (Queued(2), "scheduler", "queued", "1 job ahead", "queued"),
        (Queued(3), "scheduler", "queued", "2 jobs ahead", "queued"),
        (Queued(3, 2400), "scheduler", "queued", "2 jobs ahead, about 3 s", "queued"),
        (Queued(9, 190_000), "scheduler", "queued", "8 jobs ahead, about 4 min", "queued"),
        (Admitted(1), "scheduler", "admitted", "Reading a prompt of 1 token", "prefill"),
        (Admitted(9, 4), "scheduler", "admitted", "Reading a prompt of 9 tokens, 4 of them from the cache", "prefill"),
        (Admitted(0), "scheduler", "admitted", "It is this job's turn", "prefill"),
        (Progress(2, 5), "engine", "prefill", "Prefill 40 %", "prefill"),
        (Progress(5, 5), "engine", "prefill", "Prefill 100 %", "prefill"),
        (Preempted("room is needed"), "scheduler", "preempted", "Paused: room is needed", "queued"),
        (Resumed(2), "worker", "resumed", "The job goes on where it was, in attempt 2", "queued"),
        (FirstToken(40), "engine", "first_token", "First token after 40 ms", "decode"),
        (Note(actor="worker", action="completed", human="Done"), "worker", "completed", "Done", "done"),
        (Note(actor="ops", action="hello", human="Hi"), "ops", "hello", "Hi", "note"),
    ],
)
def test_every_event_has_its_sentence(event: Event, actor: str, action: str, human: str, phase: str) -> None:
    fields = told(event)
    assert (fields["actor"], fields["action"], fields["human"], fields["phase"]) == (actor, action, human, phase)
    assert (fields["target"], fields["emitted_at_ms"], fields["emitted_by"]) == (JOB, 1234, "jobwire")


@pytest.mark.parametrize(
    "event",
    [
        Token("a"),
        Finished(finish_reason="stop", usage=USAGE),
        Failed(PROBLEM, USAGE),
        Cancelled("client", USAGE),
        Expired(PROBLEM, USAGE),
    ],
)
def test_text_and_ends_speak_for_themselves(event: Event) -> None:
    assert narrate(JOB, Record(1, 0, event)) is None


def test_numbers_are_there_as_numbers_too() -> None:
    assert told(Queued(3, 2400)).items() >= {"queue": {"position": 3, "eta_ms": 2400}, "queue_position": 3}.items()
    assert told(Queued(3))["queue"] == {"position": 3}
    assert told(FirstToken(40))["duration_ms"] == 40
    assert told(Admitted(9, 4))["metrics"] == {"prompt_tokens": 9, "cached_tokens": 4}
    assert (
        told(Progress(1, 3)).items()
        >= {"progress": 0.3333, "metrics": {"prefilled_tokens": 1, "total_tokens": 3}}.items()
    )
    note = Note(actor="a", action="b", human="c", level="warn", duration_ms=5, tokens_in=6, tokens_out=7)
    assert told(note).items() >= {"level": "warn", "duration_ms": 5, "tokens_in": 6, "tokens_out": 7}.items()


def test_what_is_absent_is_left_out() -> None:
    fields = told(Note(actor="a", action="b", human="c"))
    assert not {"level", "duration_ms", "tokens_in", "tokens_out", "cute", "queue", "progress", "metrics"} & set(fields)


def test_some_moments_are_celebrated() -> None:
    assert told(FirstToken(40))["cute"] == CUTE["first_token"]


def events() -> st.SearchStrategy[Any]:
    """Return a strategy for any event that is neither text nor an end."""
    kinds = [kind for kind in get_args(Event) if kind is not Token and kind not in get_args(Terminal)]
    count = st.integers(0, 10**6)
    texts = {str: st.text(max_size=20), int: count}
    return st.one_of(
        [
            st.builds(
                kind,
                **{
                    field.name: texts.get(field.type, st.none() | count)
                    for field in msgspec.structs.fields(kind)
                    if field.name != "level"
                },
            )
            for kind in kinds
        ]
    )


@given(events())
def test_any_event_is_told_in_one_line_without_nulls(event: Event) -> None:
    fields = told(event)
    assert {"actor", "action", "target", "human", "phase"} <= set(fields)
    assert None not in fields.values()
    assert fields.get("progress", 0) >= 0
