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
    Tokenized,
    Usage,
)
from worker.jobs.narration import Narration
from worker.jobs.remarks import preparing
from worker.observers.narration import CUTE, narrate

USAGE = Usage(prompt_tokens=1, completion_tokens=0, cached_tokens=0, queue_ms=0, total_ms=0)
PROBLEM = EngineFailed("It broke.").problem()


def told(event: Event) -> Narration:
    """Return the narration of an event."""
    narration = narrate(Record(1, 1234, event))
    assert narration is not None
    return narration


def known(event: Event) -> dict[str, Any]:
    """Return what is known of an event besides its sentence."""
    fields = msgspec.structs.asdict(told(event))
    sentence = ("actor", "action", "human", "phase")
    return {name: value for name, value in fields.items() if value is not None and name not in sentence}


@pytest.mark.parametrize(
    ("event", "actor", "action", "human", "phase"),
    [
        (Queued(1), "scheduler", "queued", "Next in line", "queued"),
        (Queued(2), "scheduler", "queued", "1 job ahead", "queued"),
        (Queued(3), "scheduler", "queued", "2 jobs ahead", "queued"),
        (Queued(3, 2400), "scheduler", "queued", "2 jobs ahead, about 3 s", "queued"),
        (Queued(9, 190_000), "scheduler", "queued", "8 jobs ahead, about 4 min", "queued"),
        (Tokenized(1, b"1234"), "preparer", "prepared", "The prompt has 1 token", "queued"),
        (Tokenized(12, b""), "preparer", "prepared", "The prompt has 12 tokens", "queued"),
        (preparing(), "preparer", "preparing", "The prompt is still being read", "queued"),
        (Admitted(1), "scheduler", "admitted", "Reading a prompt of 1 token", "prefill"),
        (Admitted(9, 4), "scheduler", "admitted", "Reading a prompt of 9 tokens, 4 of them from the cache", "prefill"),
        (Admitted(0), "scheduler", "admitted", "It is this job's turn", "prefill"),
        (Progress(2, 5), "engine", "prefill", "Prefill 40%", "prefill"),
        (Progress(5, 5), "engine", "prefill", "Prefill 100%", "prefill"),
        (Preempted("room is needed"), "scheduler", "preempted", "Paused: room is needed", "queued"),
        (FirstToken(40), "engine", "first_token", "First token after 40 ms", "decode"),
        (Resumed(2), "worker", "resumed", "The job continues where it stopped, in attempt 2", "queued"),
        (Note(actor="worker", action="completed", human="Done"), "worker", "completed", "Done", "done"),
        (Note(actor="ops", action="hello", human="Hi"), "ops", "hello", "Hi", "note"),
    ],
)
def test_every_event_has_its_sentence(event: Event, actor: str, action: str, human: str, phase: str) -> None:
    narration = told(event)
    assert (narration.actor, narration.action, narration.human, narration.phase) == (actor, action, human, phase)


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
    assert narrate(Record(1, 0, event)) is None


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Queued(3, 2400), {"queue_position": 3, "eta_ms": 2400}),
        (Queued(3), {"queue_position": 3}),
        (Tokenized(9, b"never shown"), {"tokens_in": 9}),
        (
            Admitted(9, 4),
            {"tokens_in": 9, "metrics": {"prompt_tokens": 9, "cached_tokens": 4}, "cute": CUTE["admitted"]},
        ),
        (Progress(1, 3), {"progress": 0.3333, "metrics": {"prefilled_tokens": 1, "total_tokens": 3}}),
        (Progress(0, 0), {"progress": 1.0, "metrics": {"prefilled_tokens": 0, "total_tokens": 0}}),
        (Resumed(2), {"metrics": {"attempt": 2}, "cute": CUTE["resumed"]}),
        (Preempted("room"), {"level": "warn", "cute": CUTE["preempted"]}),
        (
            Note(actor="a", action="b", human="c", level="warn", duration_ms=5, tokens_in=6, tokens_out=7),
            {"level": "warn", "duration_ms": 5, "tokens_in": 6, "tokens_out": 7},
        ),
        (Note(actor="a", action="b", human="c"), {}),
        (FirstToken(40), {"duration_ms": 40, "cute": CUTE["first_token"]}),
    ],
)
def test_numbers_are_there_as_numbers_too_and_nothing_else(event: Event, expected: dict[str, Any]) -> None:
    assert known(event) == expected


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
def test_any_event_is_narrated_in_one_line(event: Event) -> None:
    narration = told(event)
    assert narration.actor is not None and narration.action is not None and narration.phase
    assert narration.progress is None or narration.progress >= 0
