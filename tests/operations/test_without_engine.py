"""Operations that need no engine: the worker's state, and a stream to test with."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.jobs.scripted import LIMITS, READY, STATS
from tests.protocol.wire import Wire, text, types
from worker.brokers.base import EngineState
from worker.errors import ModelError
from worker.events import Admitted, Note, Token
from worker.jobs.lifecycle import JobState, next_state
from worker.operations.base import Operation
from worker.operations.fields import WrongFields
from worker.operations.status import Status
from worker.operations.worker_check import WORDS, WorkerCheck

BROKEN = EngineState(phase="failed", error=ModelError("The model file is broken.").problem())


def told(state: EngineState) -> tuple[str, dict[str, Any]]:
    """Return the sentence and the facts of a status."""
    request = Status(lambda: state).parse({"operation": "status"}, LIMITS, WrongFields())
    admitted, note, token = request.script
    assert isinstance(admitted, Admitted) and isinstance(note, Note) and isinstance(token, Token)
    return note.human, json.loads(token.text)


def test_status_tells_what_the_engine_does() -> None:
    human, facts = told(msgspec.structs.replace(READY, stats=STATS))
    assert human == "The engine is ready; test-model on scripted; 1 running, 2 waiting"
    assert facts == {
        "state": "ready",
        "engine": "scripted",
        "model": "test-model",
        "device": "cpu",
        "slots": 4,
        "running": 1,
        "waiting": 2,
        "tokens_per_s": 200.0,
    }


def test_status_of_a_worker_without_a_model() -> None:
    assert told(EngineState(phase="loading")) == ("The engine is loading", {"state": "loading"})
    human, facts = told(BROKEN)
    assert human == "The engine is failed; The model file is broken"
    assert facts == {"state": "failed", "error": "The model file is broken."}


def test_status_is_asked_anew_for_every_job() -> None:
    states = iter([READY, BROKEN])
    operation = Status(lambda: next(states))
    first, second = operation.parse({}, LIMITS, WrongFields()), operation.parse({}, LIMITS, WrongFields())
    assert first.script != second.script
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("operation", [Status(lambda: BROKEN), WorkerCheck()])
def test_a_script_is_a_possible_life(operation: Operation) -> None:
    state: JobState = "queued"
    for event in operation.parse({}, LIMITS, WrongFields()).script:
        state = next_state(state, event)
    assert state == "running"


def test_a_worker_check_reaches_a_client_even_without_a_model() -> None:
    wire = Wire()
    wire.stage.broker.state = BROKEN
    client = wire.connect()
    client.send("create", operation="worker_check", job_id="a-check-of-ours-1")
    accepted, *frames = client.pull_all()
    assert (accepted["type"], types(frames)[-1]) == ("accepted", "end")
    assert text(frames) == "".join(WORDS)
    actions = [frame["action"] for frame in frames if frame["type"] == "narration"]
    assert {"check_started", "check_warning", "check_passed", "prefill"} <= set(actions)
    assert [frame["level"] for frame in frames if frame.get("action") == "check_warning"] == ["warn"]
