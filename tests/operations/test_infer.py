"""What a job may ask for: every wrong field named in one answer, every right one understood."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS
from worker.errors import InvalidParams
from worker.operations.base import JobRequest
from worker.operations.base import fingerprint as fingerprint_of
from worker.operations.fields import WrongFields
from worker.operations.infer import FIELDS, FORM_BYTES_MAX, Infer
from worker.requests import Message, Prompt, ResponseFormat


def parse(**body: Any) -> JobRequest:
    """Parse a body with a prompt."""
    return Infer().parse({"prompt": "Hi", **body}, LIMITS, WrongFields())


def wrong(**body: Any) -> dict[str, str]:
    """Return what is wrong with a body, by pointer; each pointer once."""
    with pytest.raises(InvalidParams) as refused:
        Infer().parse(body, LIMITS, WrongFields())
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


CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

FIELD_CASES: list[tuple[str, object, str, object]] = [
    ("messages", CONVERSATION, "prompt.messages", (Message("system", "Be brief."), Message("user", "Hi"))),
    ("max_tokens", 7, "max_tokens", 7),
    ("max_tokens", 20.0, "max_tokens", 20),
    ("temperature", 0, "sampling.temperature", 0.0),
    ("temperature", 0.699999988079071, "sampling.temperature", 0.699999988079071),
    ("temperature", 2, "sampling.temperature", 2.0),
    ("top_p", 0.001, "sampling.top_p", 0.001),
    ("top_p", 1, "sampling.top_p", 1.0),
    ("top_k", 0, "sampling.top_k", 0),
    ("top_k", 2**31 - 1, "sampling.top_k", 2**31 - 1),
    ("min_p", 0, "sampling.min_p", 0.0),
    ("min_p", 1, "sampling.min_p", 1.0),
    ("repetition_penalty", 0.1, "sampling.repetition_penalty", 0.1),
    ("repetition_penalty", 10, "sampling.repetition_penalty", 10.0),
    ("presence_penalty", -2, "sampling.presence_penalty", -2.0),
    ("presence_penalty", 2, "sampling.presence_penalty", 2.0),
    ("frequency_penalty", -2, "sampling.frequency_penalty", -2.0),
    ("frequency_penalty", 2, "sampling.frequency_penalty", 2.0),
    ("seed", 0, "seed", 0),
    ("seed", -1, "seed", 2**64 - 1),
    ("seed", 2**70 + 3, "seed", 3),
    ("seed", 7.0, "seed", 7),
    ("stop", "x", "sampling.stop", ("x",)),
    ("stop", ["\n", "END"], "sampling.stop", ("\n", "END")),
    ("stop", [], "sampling.stop", ()),
    ("stop", ["x"] * 16, "sampling.stop", ("x",) * 16),
    ("stop", "y" * 256, "sampling.stop", ("y" * 256,)),
    ("banned_strings", ["never"], "sampling.banned_strings", ("never",)),
    ("logit_bias", {"7": -100, "8": 1.5}, "sampling.logit_bias", {7: -100.0, 8: 1.5}),
    ("logit_bias", {"0": 100}, "sampling.logit_bias", {0: 100.0}),
    ("response_format", {"type": "text"}, "sampling.response_format", ResponseFormat()),
    (
        "response_format",
        {"type": "json_schema", "schema": {}},
        "sampling.response_format",
        ResponseFormat(type="json_schema", schema={}),
    ),
    (
        "response_format",
        {"type": "regex", "pattern": "a+"},
        "sampling.response_format",
        ResponseFormat(type="regex", pattern="a+"),
    ),
    ("include", ["ids"], "include_ids", True),
    ("include", ["logprobs"], "include_ids", False),
    ("logprobs", 20, "sampling.logprobs", 20),
    ("ignore_eos", True, "sampling.ignore_eos", True),
    ("token_healing", True, "sampling.token_healing", True),
    ("n", 1, "n", 1),
    ("n", 4, "n", 4),
    ("n", 2.0, "n", 2),
    ("priority", 0, "priority", 0),
    ("priority", 9, "priority", 9),
    ("deadline_ms", 1, "deadline_ms", 1),
    ("deadline_ms", 2**31 - 1, "deadline_ms", 2**31 - 1),
    ("detach", True, "detach", True),
    ("unknown", {"of": "no matter"}, "operation", "infer"),
    ("model", "whatever", "operation", "infer"),
]
"""A field, a value at the edge of what it may be, where that goes, and as what."""


@pytest.mark.parametrize(("field", "value", "where", "expected"), FIELD_CASES)
def test_a_field_reaches_its_place_over_its_whole_range(
    field: str, value: object, where: str, expected: object
) -> None:
    body = {field: value} if field == "messages" else {"prompt": "Hi", field: value}
    request = Infer().parse(body, LIMITS, WrongFields())
    assert attrgetter(where)(request) == expected
    # The engine's process can be sent all of it.
    msgspec.msgpack.encode(request.sampling.with_seed(request.seed or 0))


def test_every_field_has_its_case() -> None:
    assert {field for field, *_ in FIELD_CASES} >= set(FIELDS) - {"prompt", "raw"}


def test_a_raw_prompt_is_continued_as_it_stands() -> None:
    assert parse(raw=True).prompt == Prompt(text="Hi")
    assert parse(raw=False).prompt.messages


@pytest.mark.parametrize("name", FIELDS)
def test_null_is_the_same_as_absent(name: str) -> None:
    body: dict[str, Any] = {"prompt": "Hi"} if name == "messages" else {"messages": CONVERSATION}
    # The fingerprint is among what is compared.
    assert Infer().parse({**body, name: None}, LIMITS, WrongFields()) == Infer().parse(body, LIMITS, WrongFields())


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
    assert list(wrong(messages=[message, {"role": "user"}])) == ["/messages/1/content"]


@pytest.mark.parametrize("content", ["x" * 10_001, "half \ud800"])
def test_what_is_wrong_with_all_messages_is_said_of_them(content: str) -> None:
    assert list(wrong(messages=[{"role": "user", "content": content}])) == ["/messages"]


def test_all_that_is_wrong_is_named_at_once() -> None:
    found = wrong(prompt="", temperature=5, n=99, stop=["a", ""])
    assert set(found) == {"/prompt", "/temperature", "/n", "/stop/1"}


# ---- identity --------------------------------------------------------------------------------------------------------


def fingerprint(body: dict[str, Any]) -> bytes:
    return fingerprint_of(body, FIELDS)


def test_the_order_of_fields_their_delivery_and_nulls_do_not_matter() -> None:
    one = {"prompt": "Hi", "n": 2, "logit_bias": {"1": 1, "2": 2}}
    two = {"logit_bias": {"2": 2, "1": 1}, "n": 2, "prompt": "Hi", "after": "x-1", "ref": "r", "seed": None, "x": 1}
    assert fingerprint(one) == fingerprint(two)
    assert len(fingerprint(one)) == 16


@given(st.dictionaries(st.sampled_from(["prompt", "n", "seed", "stop"]), st.text() | st.integers()), st.data())
def test_any_other_difference_makes_another_job(body: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["prompt", "n", "seed", "stop", "operation"]))
    value = data.draw((st.text() | st.integers()).filter(lambda value: body.get(name) != value))
    assert fingerprint(body) != fingerprint({**body, name: value})
