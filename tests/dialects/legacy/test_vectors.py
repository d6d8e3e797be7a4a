"""Recorded requests, streams and errors of the older worker's wire, against ours.

`vectors.tsv` has a vector per line: section, name, data, and where it was recorded the old worker's answer.
Where the contract says otherwise than the old worker, the contract wins, and the reason stands beside the case.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.scripted import ANN, LIMITS, Stage
from tests.protocol.wire import ID, Wire
from worker import errors
from worker.dialects.legacy import problems as legacy
from worker.dialects.legacy.stream import LegacyReader
from worker.errors import JobwireError, Problem
from worker.events import FinishReason
from worker.jobs.job import Job
from worker.jobs.narration import Narration
from worker.observers.narration import narrate
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.protocol import creating, decoding, frames, views
from worker.protocol.host import Caller
from worker.scheduler.works import Refused

LINES = (Path(__file__).parent / "vectors.tsv").read_text(encoding="utf-8").split("\n")
VECTORS = {(section, name): rest for section, name, *rest in (line.split("\t") for line in LINES if line)}


def vector(section: str, name: str) -> str:
    """Return a vector's data."""
    return VECTORS[section, name][0]


def names(section: str) -> list[str]:
    """Return the names of a section's vectors."""
    return [name for of, name in VECTORS if of == section]


# ---- requests --------------------------------------------------------------------------------------------------------

ACCEPTED = "accepted"
OUTCOMES = {
    ("request", "op.infer.full"): ACCEPTED,
    ("request", "op.infer.min"): ACCEPTED,
    # The old worker knew the name and refused it. Here the worker tells its state.
    ("request", "op.status"): ACCEPTED,
    ("parse", "status"): ACCEPTED,
    ("request", "op.hive_check"): "unsupported_operation",
    ("request", "op.model_list"): "unsupported_operation",
    ("parse", "ok.min"): ACCEPTED,
    ("parse", "ok.nulls"): ACCEPTED,
    # Old: accepted, and then nothing could come of it. Now each field that makes no sense is named.
    ("parse", "ok.zero"): "invalid_params",
    # Old: 500 without `operation`, `hive_id`, `max_tokens` or `temperature`. Now all are optional.
    ("parse", "queen_scheduler_body"): ACCEPTED,
    ("parse", "worker_ui_hook_body"): ACCEPTED,
    ("parse", "no_max_tokens"): ACCEPTED,
    ("parse", "no_temperature"): ACCEPTED,
    # Old: 500 for all of these. Now what the client did wrong is a 400.
    ("parse", "neg_max_tokens"): "invalid_params",
    ("parse", "str_max_tokens"): "invalid_params",
    ("parse", "unknown_op"): "unsupported_operation",
    ("parse", "PascalCase"): "unsupported_operation",
    ("parse", "hive_check"): "unsupported_operation",
    ("parse", "spawn"): "unsupported_operation",
    ("parse", "array"): "bad_frame",
    ("parse", "string"): "bad_frame",
    ("parse", "null"): "bad_frame",
    ("parse", "empty"): "invalid_params",
    ("parse", "op_number"): "invalid_params",
    # The oldest body, with its defaults spelled out.
    ("validation", "defaults"): ACCEPTED,
}


def post(data: str) -> tuple[Job, dict[str, Any]]:
    """Create a job as a POST does; return it and the request that reached it. Raises errors of the tree."""
    client = Wire().connect()
    frame = decoding.create_of(decoding.load(data, 1 << 20, 20_000), LIMITS)
    return creating.create(client, Caller(ANN), frame).job, frame.body


@pytest.mark.parametrize("key", OUTCOMES, ids="-".join)
def test_every_recorded_request_is_answered(key: tuple[str, str]) -> None:
    outcome = OUTCOMES[key]
    if outcome == ACCEPTED:
        job, _ = post(vector(*key))
        assert job.id.startswith("job-")
        return
    with pytest.raises(JobwireError) as refused:
        post(vector(*key))
    assert refused.value.code == outcome
    problem = legacy.problem(refused.value)
    assert (problem["status"], problem["code"], problem["retriable"]) == (400, "INVALID_REQUEST", False)
    if outcome == "unsupported_operation":
        assert "infer, status, worker_check" in problem["message"]


def test_no_recorded_request_is_forgotten() -> None:
    recorded = {("request", name) for name in names("request")} | {("parse", name) for name in names("parse")}
    assert recorded - set(OUTCOMES) == {("request", "job_response")}


def test_what_the_full_body_asks_for_reaches_the_job() -> None:
    job, body = post(vector("request", "op.infer.full"))
    request = job.request
    assert (request.max_tokens, request.sampling.temperature, request.sampling.top_p) == (20, 0.7, 0.9)
    assert (request.sampling.top_k, request.prompt.messages[0].content) == (40, "hello")
    # Fields of the old fleet have no meaning here.
    assert {"hive_id", "model", "device", "worker_id", "stream"} < set(body)


def test_the_oldest_body_asks_for_what_it_says() -> None:
    job, _ = post(vector("validation", "defaults"))
    assert (job.request.max_tokens, job.request.sampling.stop, job.request.sampling.min_p) == (5, (), 0.0)


def test_numbers_of_single_precision_are_taken_as_they_come() -> None:
    job, _ = post('{"prompt":"p","temperature":0.699999988079071,"max_tokens":20.0}')
    assert job.request.sampling.temperature == 0.699999988079071
    assert job.request.max_tokens == 20


def test_the_answer_has_the_recorded_keys() -> None:
    job, _ = post(vector("request", "op.infer.min"))
    answer = json.loads(views.created(job, frames.sse_url(job.id)))
    recorded = json.loads(vector("request", "job_response"))
    assert set(recorded) <= set(answer)
    assert answer["sse_url"] == recorded["sse_url"].replace(recorded["job_id"], answer["job_id"])


# ---- streams ---------------------------------------------------------------------------------------------------------


def chunks(stream: LegacyReader) -> list[bytes]:
    """Take all chunks there are."""
    found = []
    while (chunk := stream.next()) is not None:
        found.append(chunk)
    return found


def payloads(stream: LegacyReader) -> list[str]:
    """Return the data of all events, checked to be ASCII in one `data: ` line per chunk."""
    found = []
    for chunk in chunks(stream):
        line = chunk.decode("ascii")
        assert line.startswith("data: ") and line.endswith("\n\n") and line.count("\n") == 2
        found.append(line[6:-2])
    return found


def story(
    *texts: str,
    finish: FinishReason = "stop",
    stop_sequence: str | None = None,
    step_ms: float = 0,
    vram_bytes: int = 0,
) -> LegacyReader:
    """Return the stream of job-1, created at 1761838000, whose tokens come a step apart."""
    stage = Stage()
    stage.clock.now_ms = 0
    job = stage.create("job-1")
    stage.start(job)
    for number, text in enumerate(texts):
        if number:
            stage.clock.advance(step_ms)
        stage.tokens(job, text)
    stage.finish(job, finish, stop_sequence=stop_sequence)
    return LegacyReader(job, "model", narrate, vram_bytes)


def produced(name: str) -> str:
    """Return what we send where the old worker sent vector `name`."""
    match name:
        case "started":
            return payloads(story())[0]
        case "token":
            text = json.loads(vector("sse", "token"))["t"]
            return next(payload for payload in payloads(story(text)) if '"token"' in payload)
        case "metrics":
            # 17 steps in 400 ms.
            return payloads(story(*["w"] * 18, step_ms=400 / 17, vram_bytes=536870912))[-3]
        case "MaxTokens" | "Eos" | "StopSequence":
            finish: dict[str, FinishReason] = {"MaxTokens": "length", "Eos": "stop", "StopSequence": "stop_string"}
            stop = "\n\n" if name == "StopSequence" else None
            return payloads(story(*["w"] * 25, finish=finish[name], stop_sequence=stop, step_ms=750 / 24))[-2]
        case "Cancelled":
            return payloads(cancelled(25, 750))[-2]
        case "error":
            return payloads(failed(JobwireError("m").problem()))[-2]
        case _:
            return payloads(narrated(json.loads(vector("sse", name))))[1]


def cancelled(tokens: int, ms: float) -> LegacyReader:
    """Return the stream of a job cancelled so long after its first token."""
    stage = Stage()
    job = stage.create(ID)
    stage.start(job)
    stage.tokens(job, *["w"] * tokens)
    stage.clock.advance(ms)
    stage.jobs.cancel("ann", ID)
    return LegacyReader(job, "model", narrate)


def failed(problem: Problem) -> LegacyReader:
    """Return the stream of a job that failed with this."""
    stage = Stage()
    job = stage.create(ID)
    stage.send(Refused(job.choices[0].lease, problem))
    return LegacyReader(job, "model", narrate)


def narrated(fields: dict[str, Any]) -> LegacyReader:
    """Return the stream of a job whose every event is narrated like this."""
    told = Narration(phase="note", **{name: fields[name] for name in Narration.__struct_fields__ if name in fields})
    return LegacyReader(Stage().create(fields["target"]), "model", lambda _: told)


NEVER_SENT = {"story", "correlation_id"}
"""Optional in the old contract, and made by nothing here."""


@pytest.mark.parametrize("name", [name for name in names("sse") if name != "Error"])
def test_every_recorded_event_is_sent_in_its_shape(name: str) -> None:
    recorded, ours = json.loads(vector("sse", name)), json.loads(produced(name))
    recorded = {key: value for key, value in recorded.items() if key not in NEVER_SENT}
    shared = {key: ours[key] for key in recorded}
    assert shared == recorded
    assert list(shared) == list(recorded)
    # The contract adds `retriable` to errors. Narration always names its job, its program and its time.
    assert set(ours) - set(recorded) <= {"retriable", "job_id", "emitted_by", "emitted_at_ms"}


def test_a_failure_is_an_error_event_rather_than_an_end() -> None:
    """The old worker had an `end` with ERROR too. The contract allows both; only `error` says what went wrong."""
    assert json.loads(vector("sse", "Error"))["stop_reason"] == "ERROR"
    ended = [json.loads(payload)["type"] for payload in payloads(failed(JobwireError("m").problem()))[:-1]]
    assert "end" not in ended


def test_events_come_in_order_and_the_marker_is_last() -> None:
    got = payloads(story("a", "b", step_ms=10))
    kinds = [json.loads(payload)["type"] for payload in got[:-1]]
    assert kinds[0] == "started"
    assert [kind for kind in kinds if kind != "narration"] == ["started", "token", "token", "metrics", "end"]
    assert got[-1] == "[DONE]"
    assert [json.loads(payload)["i"] for payload in got if '"token"' in payload] == [0, 1]


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_recorded_wrong_fields_are_named_as_before() -> None:
    """Constraints are worded anew, and some limits are wider now: what is named is compared, and its old keys."""
    recorded = json.loads(vector("validation", "400.fields"))["errors"]
    body = {
        "prompt": "",
        "max_tokens": 5000,
        "temperature": 2.5,
        "top_p": 1.5,
        "repetition_penalty": -0.5,
        "stop": ["a", "b", "c", "d", ""],
        "min_p": -1,
    }
    with pytest.raises(errors.InvalidParams) as refused:
        Infer().parse(body, LIMITS, WrongFields())
    problem = legacy.problem(refused.value, body)
    assert problem["status"] == 400
    assert {item["field"].partition(".")[0] for item in problem["errors"]} == {item["field"] for item in recorded}
    for item in problem["errors"]:
        assert {"field", "constraint", "message"} <= set(item)
        assert item["field"] in item["message"]
    values = {item["field"]: item.get("value") for item in problem["errors"]}
    for item in recorded:
        if "value" in item and item["field"] != "stop":
            assert values[item["field"]] == item["value"]
    assert values["prompt"] is None


RETRIABLE_DIFFERS = {
    # A failed engine is worth another try; a bug, and a job that was given too little time, are not.
    "INTERNAL",
    "INFERENCE_TIMEOUT",
    # Shutting down: another worker, or this one soon.
    "WORKER_UNHEALTHY",
}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidParams("x"), "INVALID_REQUEST"),
        (errors.BadFrame("x"), "INVALID_REQUEST"),
        (errors.UnsupportedMediaType("x"), "INVALID_REQUEST"),
        (errors.DeadlineExceeded("x"), "INFERENCE_TIMEOUT"),
        (errors.Draining("x", retry_after_ms=1), "WORKER_UNHEALTHY"),
        (errors.ModelError("x"), "WORKER_UNHEALTHY"),
        (errors.QueueFull("x", retry_after_ms=1), "INSUFFICIENT_RESOURCES"),
        (errors.Overloaded("x", retry_after_ms=1), "INSUFFICIENT_RESOURCES"),
        (JobwireError("x"), "INTERNAL"),
        (errors.EngineFailed("x"), "INTERNAL"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_errors_carry_the_recorded_codes(error: JobwireError, code: str) -> None:
    recorded = json.loads(vector("error", code))
    ours = legacy.problem(error)
    assert set(recorded) <= set(ours)
    assert ours["code"] == ours["error"]["code"] == recorded["code"]
    assert ours["message"] == ours["error"]["message"] == ours["detail"] == "x"
    assert ours["type"] == f"urn:jobwire:error:{error.code}"
    if code not in RETRIABLE_DIFFERS:
        assert ours["retriable"] == recorded["retriable"]


def test_codes_of_hardware_that_is_not_told_apart_are_not_sent() -> None:
    """An engine that ran out of memory or broke on its device is INTERNAL: why is in the message."""
    sent = {legacy.problem(JobwireError("x"))["code"], *legacy.ERROR_CODES.values(), legacy.ERROR_CODE_OTHER}
    assert set(names("error")) - sent == {"CUDA_ERROR", "INSUFFICIENT_VRAM"}
