"""The dialect of the older worker survives the careless line parsers that its clients have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dialects.legacy.test_vectors import cancelled, chunks, failed, payloads, story
from tests.jobs.scripted import Stage
from tests.protocol.wire import ID
from worker import errors
from worker.dialects.legacy.problems import problem, status
from worker.dialects.legacy.stream import STOP_REASONS, STREAM_CODE_OTHER, STREAM_CODES, LegacyReader
from worker.errors import FieldError, JobwireError, Problem
from worker.observers.narration import narrate

NASTY = 'Hello [DONE] [ERROR] x [CANCELLED] \r\n\ndata: [DONE]\u2028\u2029\x85 é 你 👩‍🚀 "q" \\[ </s>\x00'


def careless(lines: list[str]) -> tuple[str, list[str]]:
    """Read as the old job client does: a marker anywhere in a line ends everything."""
    seen: list[str] = []
    for line in lines:
        data = line.removeprefix("data: ")
        if not data:
            continue
        for marker in ("[DONE]", "[ERROR]", "[CANCELLED]"):
            if marker in data:
                return marker, seen
        seen.append(data)
    return "cut", seen


def scheduler(body: bytes, chunk_bytes: int) -> list[str]:
    """Read as the old scheduler does: decode each chunk by itself, whatever it was cut from."""
    pieces = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
    text = "".join(piece.decode(errors="replace") for piece in pieces)
    found = []
    for line in text.split("\n"):
        if line == "data: [DONE]":
            break
        if line.startswith("data: "):
            found.append(line[6:])
    return found


def tokens(lines: list[str]) -> str:
    """Return the text in these payloads."""
    parsed = [json.loads(line) for line in lines]
    return "".join(item["t"] for item in parsed if item["type"] == "token")


def test_text_cannot_imitate_a_marker() -> None:
    marker, seen = careless(payloads(story("a", NASTY, "b")))
    assert (marker, tokens(seen)) == ("[DONE]", f"a{NASTY}b")


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 4096])
def test_text_survives_any_cut_between_bytes(chunk_bytes: int) -> None:
    body = b"".join(chunks(story("a", NASTY, "b")))
    assert tokens(scheduler(body, chunk_bytes)) == f"a{NASTY}b"


@given(st.lists(st.text(max_size=20), max_size=6))
def test_any_text_arrives_one_chunk_per_event_in_ascii(texts: list[str]) -> None:
    body = chunks(story(*texts))
    for chunk in body:
        assert chunk.isascii()
        assert chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2
        assert b"[" not in chunk or chunk == b"data: [DONE]\n\n"
    marker, seen = careless([chunk.decode().rstrip("\n") for chunk in body])
    assert (marker, tokens(seen)) == ("[DONE]", "".join(texts))


@pytest.mark.parametrize(
    ("stream", "marker", "last"),
    [
        (cancelled(2, 10), "[CANCELLED]", {"type": "end", "stop_reason": "CANCELLED"}),
        (
            failed(errors.DeadlineExceeded("Too late.").problem()),
            "[ERROR] Too late.",
            {"type": "error", "code": "TIMEOUT", "message": "Too late.", "retriable": False},
        ),
        (
            failed(errors.InvalidParams("The prompt is too long.").problem()),
            "[ERROR] The prompt is too long.",
            {"type": "error", "code": "INVALID_REQUEST"},
        ),
        (
            failed(errors.EngineFailed("It died.").problem()),
            "[ERROR] It died.",
            {"type": "error", "code": "INFERENCE_FAILED", "retriable": True},
        ),
        (failed(errors.ModelError("No model.").problem()), "[ERROR] No model.", {"code": "INFERENCE_FAILED"}),
        (failed(JobwireError("Odd.").problem()), "[ERROR] Odd.", {"code": "GENERATION_ERROR"}),
    ],
)
def test_every_way_to_end_has_its_event_and_its_marker(
    stream: LegacyReader, marker: str, last: dict[str, object]
) -> None:
    got = payloads(stream)
    assert got[-1] == marker
    assert last.items() <= json.loads(got[-2]).items()
    assert stream.ended


def test_a_marker_is_one_line_of_ascii_whatever_the_message() -> None:
    problem = Problem(
        type="t", title="t", status=500, detail="Größe\r\n\ndata: [DONE]\n \udcff", code="c", retriable=False
    )
    [*_, marker] = chunks(failed(problem))
    assert marker.count(b"\n") == 2 and marker.isascii() and b"\r" not in marker
    assert marker.startswith(b"data: [ERROR] Gr\\xf6\\xdfe data: ")


def test_an_expired_job_is_a_timeout() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", deadline_ms=1)
    stage.clock.advance(1)
    stage.jobs.sweep()
    assert json.loads(payloads(LegacyReader(job, "m", narrate))[-2])["code"] == "TIMEOUT"


def test_a_stream_follows_a_live_job() -> None:
    stage = Stage()
    job = stage.create(ID)
    stream = LegacyReader(job, "m", narrate)
    assert [json.loads(payload)["type"] for payload in payloads(stream)] == ["started", "narration"]
    assert (stream.next(), stream.ended) == (None, False)
    stage.start(job)
    stage.tokens(job, "a")
    assert [json.loads(payload)["type"] for payload in payloads(stream)] == ["narration"] * 2 + ["token", "narration"]
    stage.finish(job)
    assert payloads(stream)[-1] == "[DONE]"
    assert (stream.next(), stream.ended) == (None, True)


def test_a_stream_is_done_only_when_its_marker_was_taken() -> None:
    stream = story("a")
    while not stream.ended:
        last = stream.next()
        assert last is not None
    assert last == b"data: [DONE]\n\n"


def test_only_the_first_of_several_choices_is_shown() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", n=2)
    stage.start(job)
    for index in (1, 0, 1, 0):
        stage.tokens(job, f"{index}", index=index)
    shown = [json.loads(payload) for payload in payloads(LegacyReader(job, "m", narrate))]
    assert [(item["t"], item["i"]) for item in shown if item["type"] == "token"] == [("0", 0), ("0", 1)]


def test_narration_has_the_old_fields_only() -> None:
    for payload in payloads(story("a"))[:-1]:
        item = json.loads(payload)
        assert not {"phase", "queue", "progress", "metrics", "cursor"} & set(item)
        assert not any(isinstance(value, dict | list) or value is None for value in item.values())


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_missing_key_and_a_wrong_one_are_told_apart() -> None:
    error = errors.Unauthorized("Send a key.")
    assert problem(error, has_key=False)["code"] == "MISSING_API_KEY"
    assert problem(error, has_key=True)["code"] == "INVALID_API_KEY"
    assert status(error) == 401


def test_wrong_parameters_are_a_400_here() -> None:
    error = errors.InvalidParams("x")
    assert (status(error), problem(error)["status"], error.status) == (400, 400, 422)
    assert status(errors.QueueFull("x")) == 429


def test_wrong_values_are_quoted_but_prompts_never_are() -> None:
    wrong = (FieldError("/temperature", "too hot"), FieldError("/prompt", "too long"), FieldError("/stop/0", "empty"))
    body = {"temperature": 9.5, "prompt": "secret", "stop": [""]}
    items = problem(errors.InvalidParams("x", errors=wrong), body)["errors"]
    assert [(item["field"], item.get("value")) for item in items] == [
        ("temperature", "9.5"),
        ("prompt", None),
        ("stop.0", None),
    ]
    assert [(item["pointer"], item["detail"]) for item in items] == [(error.pointer, error.detail) for error in wrong]


def test_an_error_without_fields_lists_none() -> None:
    full = problem(errors.QueueFull("Full.", retry_after_ms=1500))
    assert "errors" not in full
    assert full == {
        "type": "urn:jobwire:error:queue_full",
        "title": "Queue full",
        "status": 429,
        "detail": "Full.",
        "code": "INSUFFICIENT_RESOURCES",
        "retriable": True,
        "retry_after_ms": 1500,
        "message": "Full.",
        "error": {"code": "INSUFFICIENT_RESOURCES", "message": "Full."},
    }


# ---- moving away -----------------------------------------------------------------------------------------------------


def test_every_word_of_the_old_streams_has_its_new_one_in_the_readme() -> None:
    readme = (Path(__file__).parents[3] / "worker/protocol/README.md").read_text(encoding="utf-8")
    section = readme.partition("## From the older worker")[2].partition("<!--")[0]
    old = {"started", "token", "narration", "metrics", "end", "error", "[DONE]", "[CANCELLED]", "[ERROR] ..."}
    for word in old | {*STOP_REASONS.values(), *STREAM_CODES.values(), STREAM_CODE_OTHER, *STOP_REASONS}:
        assert f"`{word}`" in section, word
