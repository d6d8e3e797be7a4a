"""What a job may ask for: every wrong field named in one answer, every right one understood."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS
from worker.errors import InvalidParams
from worker.operations.base import JobRequest, field_error, fingerprint
from worker.operations.infer import FIELDS, FORM_BYTES_MAX, Infer
from worker.requests import Message, Prompt, ResponseFormat


def parse(**body: Any) -> JobRequest:
    """Parse a body with a prompt."""
    return Infer().parse({"prompt": "Hi", **body}, LIMITS)


def wrong(**body: Any) -> dict[str, str]:
    """Return what is wrong with a body, by pointer; each pointer once."""
    with pytest.raises(InvalidParams) as refused:
        Infer().parse(body, LIMITS)
    found = {error.pointer: error.detail for error in refused.value.errors}
    assert len(found) == len(refused.value.errors)
    for pointer, detail in found.items():
        assert f"{pointer[1:]}: {detail}" in refused.value.detail
    return found


def test_a_bare_prompt_is_all_that_is_needed() -> None:
    request = parse()
    assert request.prompt == Prompt(messages=(Message("user", "Hi"),))
    assert (request.max_tokens, request.n, request.priority, request.seed, request.deadline_ms) == (16, 1, 5, None, 0)
    assert (request.operation, request.detach, request.include_ids, request.script) == ("infer", False, False, ())
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.stop) == (
        1.0,
        1.0,
        0,
        0.0,
        (),
    )
    assert sampling.logprobs is None


def test_everything_at_once() -> None:
    request = Infer().parse(
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "max_tokens": 7,
            "temperature": 0,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "presence_penalty": -1,
            "frequency_penalty": 2,
            "seed": -1,
            "stop": ["\n", "END"],
            "banned_strings": ["never"],
            "logit_bias": {"7": -100, "8": 1.5},
            "response_format": {"type": "regex", "pattern": "a+"},
            "include": ["ids", "logprobs"],
            "ignore_eos": True,
            "token_healing": True,
            "n": 2,
            "priority": 0,
            "deadline_ms": 1000,
            "detach": True,
            "unknown": {"of": "no matter"},
        },
        LIMITS,
    )
    sampling = request.sampling
    assert [message.role for message in request.prompt.messages] == ["system", "user"]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.9, 40, 0.05)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, -1.0, 2.0)
    assert sampling.banned_strings == ("never",)
    assert (sampling.stop, sampling.logit_bias, sampling.ignore_eos) == (("\n", "END"), {7: -100.0, 8: 1.5}, True)
    assert sampling.response_format == ResponseFormat(type="regex", pattern="a+")
    assert sampling.token_healing and not parse().sampling.token_healing
    assert (sampling.logprobs, request.include_ids, request.seed) == (0, True, 2**64 - 1)
    assert (request.max_tokens, request.n, request.priority) == (7, 2, 0)
    assert (request.deadline_ms, request.detach) == (1000, True)


def test_a_raw_prompt_is_continued_as_it_stands() -> None:
    assert parse(raw=True).prompt == Prompt(text="Hi")
    assert parse(raw=False).prompt.messages


@pytest.mark.parametrize("name", FIELDS)
def test_null_is_the_same_as_absent(name: str) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], name: None}
    if name == "messages":
        body["prompt"] = "Hi"
    Infer().parse(body, LIMITS)


@pytest.mark.parametrize(
    ("include", "logprobs", "expected"),
    [
        ([], None, None),
        (["ids"], None, None),
        (["logprobs"], None, 0),
        (["logprobs"], 3, 3),
        (["top_logprobs"], None, 5),
        (["top_logprobs"], 2, 2),
        (["top_logprobs"], 0, 5),
        ([], 0, 0),
    ],
)
def test_log_probabilities_as_asked_for(include: list[str], logprobs: int | None, expected: int | None) -> None:
    assert parse(include=include, logprobs=logprobs).sampling.logprobs == expected


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [1, 1000, 20.0]),
        ("temperature", [0, 2, 0.699999988079071]),
        ("top_p", [1, 0.001]),
        ("top_k", [0, 2**31 - 1]),
        ("min_p", [0, 1]),
        ("repetition_penalty", [10, 0.1]),
        ("presence_penalty", [-2, 2]),
        ("seed", [0, -(2**70), 2**70, 1e300]),
        ("stop", ["x", [], ["x"] * 16, "y" * 256]),
        ("logit_bias", [{}, {"0": 100}]),
        ("n", [1, 4, 2.0]),
        ("priority", [0, 9]),
        ("response_format", [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "schema": {}}]),
    ],
)
def test_the_whole_range_is_taken(field: str, values: list[object]) -> None:
    for value in values:
        msgspec.msgpack.encode(parse(**{field: value}).sampling.with_seed(parse(**{field: value}).seed or 0))


@pytest.mark.parametrize(
    ("field", "values", "pointer"),
    [
        ("prompt", [""], "/prompt"),
        ("prompt", [7, ["Hi"], {}], "/prompt"),
        ("prompt", ["x" * 10_001, "é" * 5001, "half \ud800"], "/prompt"),
        ("max_tokens", [0, -1, 1001, "20", 20.5, True], "/max_tokens"),
        ("temperature", [-0.1, 2.1, "hot", True], "/temperature"),
        ("top_p", [0, 1.1, -1], "/top_p"),
        ("top_k", [-1, 2**31, 10**40, 1e30], "/top_k"),
        ("min_p", [-1, 1.1], "/min_p"),
        ("repetition_penalty", [0, 10.1, -1], "/repetition_penalty"),
        ("presence_penalty", [-2.1, 2.1], "/presence_penalty"),
        ("stop", ["", [""] * 1, 7], "/stop"),
        ("banned_strings", ["x", [""], ["x"] * 257, 7], "/banned_strings"),
        ("stop", [["x"] * 17, "y" * 257], "/stop"),
        ("logit_bias", [{"x": 1}, {"-1": 1}, {"1": 101}, {str(10**30): 1}, []], "/logit_bias"),
        ("logit_bias", [{str(id_): 0 for id_ in range(4097)}], "/logit_bias"),
        ("response_format", ["json", {"type": "yaml"}, {"type": "json_schema"}, {"type": "regex"}], "/response_format"),
        ("response_format", [{"type": "json_schema", "schema": {"maximum": 10**30}}], "/response_format"),
        ("response_format", [{"type": "regex", "pattern": "a" * FORM_BYTES_MAX}], "/response_format"),
        ("include", ["ids", ["id"]], "/include"),
        ("logprobs", [-1, 21], "/logprobs"),
        ("n", [0, 5], "/n"),
        ("priority", [-1, 10], "/priority"),
        ("deadline_ms", [0, -5, 2**31], "/deadline_ms"),
        ("detach", ["yes", 1], "/detach"),
    ],
)
def test_out_of_range_is_named(field: str, values: list[object], pointer: str) -> None:
    for value in values:
        [found] = wrong(**{"prompt": "Hi", field: value})
        assert found == pointer or found.startswith(pointer + "/")


def test_prompt_or_messages_and_not_both() -> None:
    message = {"role": "user", "content": "Hi"}
    assert list(wrong()) == ["/prompt"]
    assert list(wrong(prompt="Hi", messages=[message])) == ["/prompt"]
    assert list(wrong(messages=[message], raw=True)) == ["/raw"]
    assert list(wrong(messages=[])) == ["/messages"]
    assert list(wrong(messages=[{"role": "bot", "content": "Hi"}])) == ["/messages/0/role"]
    assert list(wrong(messages=[message, {"role": "user"}])) == ["/messages/1"]


@pytest.mark.parametrize("content", ["x" * 10_001, "half \ud800"])
def test_what_is_wrong_with_all_messages_is_said_of_them(content: str) -> None:
    assert list(wrong(messages=[{"role": "user", "content": content}])) == ["/messages"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    found = wrong(prompt="", temperature=5, n=99, stop=["a", ""])
    assert set(found) == {"/prompt", "/temperature", "/n", "/stop/1"}


# ---- identity --------------------------------------------------------------------------------------------------------


def test_the_order_of_fields_their_delivery_and_nulls_do_not_matter() -> None:
    one = {"prompt": "Hi", "n": 2, "logit_bias": {"1": 1, "2": 2}}
    two = {"logit_bias": {"2": 2, "1": 1}, "n": 2, "prompt": "Hi", "after": "x-1", "ref": "r", "seed": None}
    assert fingerprint(one) == fingerprint(two)
    assert len(fingerprint(one)) == 16


@given(st.dictionaries(st.sampled_from(["prompt", "n", "seed", "stop"]), st.text() | st.integers()), st.data())
def test_any_other_difference_makes_another_job(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["prompt", "n", "seed", "stop", "operation"]))
    value = data.draw((st.text() | st.integers()).filter(lambda value: body.get(name) != value))
    assert fingerprint(body) != fingerprint({**body, name: value})


# ---- where something is wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "pointer", "detail"),
    [
        (int, "x", "/at", "Expected an integer, got a string"),
        (list[int], [1, "x"], "/at/1", "Expected an integer, got a string"),
        (dict[str, list[int]], {"a": [1, None]}, "/at", "Expected an integer, got null"),
        (list[Message], [{"role": "user", "content": 1}], "/at/0/content", "Expected a string, got an integer"),
        (dict[int, int], {"x": 1}, "/at", "Expected an integer, got a string"),
        (str | list[str], 1.5, "/at", "Expected a string or an array, got a number"),
        (FIELDS["temperature"], 9, "/at", "Expected a number, at most 2"),
        (FIELDS["max_tokens"], 0, "/at", "Expected an integer, at least 1"),
        (FIELDS["top_p"], 0, "/at", "Expected a number, above 0"),
        (FIELDS["messages"], [], "/at", "Expected an array of length at least 1"),
        (FIELDS["logprobs"], 1.5, "/at", "Expected an integer, got a number"),
        (Message, {"role": "user"}, "/at", "Object missing required field `content`"),
    ],
)
def test_a_pointer_to_the_very_place(kind: Any, value: object, pointer: str, detail: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, kind, str_keys=True)
    error = field_error(caught.value, "/at")
    assert error.detail == detail
    assert error.pointer == pointer
