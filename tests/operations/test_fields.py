"""Fields checked one by one: whatever is wrong is named, exactly that, at its very place, and within bounds."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS
from worker.errors import FieldError, InvalidParams
from worker.operations.fields import (
    DETAIL_CHARS_MAX,
    FOUND_MAX,
    KEY_CHARS_MAX,
    NAMED_MAX,
    PARTS_MAX,
    WrongFields,
    compiled,
    field_error,
)
from worker.operations.infer import FIELDS, Infer
from worker.requests import Message, ResponseFormat


def found(value: object, kind: Any) -> dict[str, str]:
    """Return what is wrong with a value, by pointer below `/at`."""
    wrong = WrongFields()
    wrong.convert({"at": value}, compiled({"at": kind}))
    return {error.pointer.removeprefix("/at"): error.detail for error in wrong.found}


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
    ],
)
def test_a_pointer_to_the_very_place(kind: Any, value: object, pointer: str, detail: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(value, kind, str_keys=True)
    error = field_error(caught.value, "/at")
    assert error.detail == detail
    assert error.pointer == pointer
    assert found(value, kind) == {pointer.removeprefix("/at"): detail}


@pytest.mark.parametrize(
    ("kind", "value", "pointer", "detail"),
    [
        (Message, {"role": "user"}, "/content", "Required"),
        (FIELDS["include"], ["ids", "x"], "/1", "Expected one of ids, logprobs, top_logprobs"),
        (frozenset[Literal["a", "b"]] | None, ["c"], "/0", "Expected one of a, b"),
        (Message, {"role": "bot", "content": "Hi"}, "/role", "Expected one of system, user, assistant, tool"),
        (FIELDS["logit_bias"], {"1": 2, "a": 1}, "", "Expected token ids as keys, got 'a'"),
        (FIELDS["logit_bias"], {"-1": 1}, "", "Expected token ids as keys, got '-1'"),
        (FIELDS["logit_bias"], {"x" * 999: 1}, "", f"Expected token ids as keys, got '{'x' * KEY_CHARS_MAX}'"),
        (FIELDS["logit_bias"], {"1": "a"}, "", "Expected a number, got a string"),
        (FIELDS["logit_bias"], {"1": 101}, "", "Expected a number, at most 100"),
    ],
)
def test_what_is_allowed_where_msgspec_does_not_say_it(kind: Any, value: object, pointer: str, detail: str) -> None:
    assert found(value, kind) == {pointer: detail}


GOOD = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("value", "kind", "pointers"),
    [
        ([{"role": "bot", "content": 1}, GOOD], FIELDS["messages"], ["/0/role", "/0/content"]),
        ([GOOD, {"role": 7, "content": "x"}], FIELDS["messages"], ["/1/role"]),
        ([GOOD, {}, 7, None], FIELDS["messages"], ["/1/role", "/1/content", "/2", "/3"]),
        ({"type": "yaml", "pattern": 7, "schema": []}, ResponseFormat, ["/type", "/schema", "/pattern"]),
        (["ids", "x", 7], FIELDS["include"], ["/1", "/2"]),
        (["", "ok", 7], FIELDS["stop"], ["/0", "/2"]),
        (["x"] * 17, FIELDS["stop"], [""]),
        (["", *["x"] * 16], FIELDS["stop"], ["", "/0"]),
        ({"x": 1, "y": 2}, FIELDS["logit_bias"], [""]),
        ({"1": 101}, FIELDS["logit_bias"], [""]),
        ("messages", FIELDS["messages"], [""]),
        ({}, FIELDS["stop"], [""]),
    ],
)  # fmt: skip
def test_everything_within_a_value_is_pointed_at(value: object, kind: Any, pointers: list[str]) -> None:
    wrong = WrongFields()
    wrong.convert({"at": value}, compiled({"at": kind}))
    assert [error.pointer.removeprefix("/at") for error in wrong.found] == pointers


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "bot", 7]), "content": st.sampled_from(["Hi", 7, None])},
    ),
    min_size=1,
    max_size=6,
)


@given(MESSAGES)
def test_any_wrong_parts_of_messages_are_named_exactly(messages: list[dict[str, object]]) -> None:
    expected = {
        f"/{index}/{name}"
        for index, message in enumerate(messages)
        for name, good in (("role", message["role"] == "user"), ("content", message["content"] == "Hi"))
        if not good
    }
    assert set(found(messages, FIELDS["messages"])) == expected


WRONG: dict[str, object] = {
    "max_tokens": 0,
    "temperature": 9,
    "top_p": 7,
    "top_k": -1,
    "min_p": "x",
    "seed": [],
    "stop": 7,
    "logit_bias": [],
    "response_format": "json",
    "n": -1,
    "priority": 10,
    "deadline_ms": 0,
    "detach": "yes",
    "raw": 1,
}


@given(st.sets(st.sampled_from(sorted(WRONG))))
def test_any_subset_of_wrong_fields_is_named_exactly(names: set[str]) -> None:
    body = {"prompt": "Hi", "unknown": 1, **{name: WRONG[name] for name in names}}
    if not names:
        Infer().parse(body, LIMITS, WrongFields())
        return
    with pytest.raises(InvalidParams) as refused:
        Infer().parse(body, LIMITS, WrongFields())
    assert {error.pointer for error in refused.value.errors} == {f"/{name}" for name in names}
    assert all(f"{name}: " in refused.value.detail for name in names)


def test_what_was_wrong_before_is_named_too() -> None:
    wrong = WrongFields([FieldError("/window", "Expected none")])
    with pytest.raises(InvalidParams) as refused:
        Infer().parse({"n": 0}, LIMITS, wrong)
    assert [error.pointer for error in refused.value.errors] == ["/window", "/n", "/prompt"]


def test_no_second_error_is_named_for_a_field() -> None:
    with pytest.raises(InvalidParams) as refused:
        Infer().parse({"prompt": 7, "messages": [7]}, LIMITS, WrongFields())
    assert [error.pointer for error in refused.value.errors] == ["/prompt", "/messages/0"]


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "ending"),
    [
        (1, "at/0: Expected a string, got an integer."),
        (NAMED_MAX, f"at/{NAMED_MAX - 1}: Expected a string, got an integer."),
        (NAMED_MAX + 1, "; and 1 more."),
        (FOUND_MAX - 1, f"; and {FOUND_MAX - 1 - NAMED_MAX} more."),
        (FOUND_MAX, f"; and at least {FOUND_MAX - NAMED_MAX} more."),
        (100_000, f"; and at least {FOUND_MAX - NAMED_MAX} more."),
    ],
)
def test_a_bounded_number_is_named_and_the_rest_counted(count: int, ending: str) -> None:
    wrong = WrongFields()
    wrong.convert({"at": [7] * count}, compiled({"at": list[str]}))
    error = wrong.error()
    assert len(error.errors) == min(count, NAMED_MAX)
    assert error.detail.endswith(ending)
    assert error.detail.startswith("Fix this field" if count == 1 else "Fix these fields")


def test_a_client_cannot_make_an_answer_long() -> None:
    wrong = WrongFields()
    wrong.convert({"at": ["x" * 10_000] * 100}, compiled({"at": FIELDS["include"]}))
    error = wrong.error()
    assert all(len(item.detail) <= DETAIL_CHARS_MAX for item in error.errors)
    assert len(json.dumps(msgspec.to_builtins(error.problem()))) < 16_384


@pytest.mark.parametrize("index", [PARTS_MAX - 1, PARTS_MAX, 100_000])
def test_what_is_far_behind_is_named_too(index: int) -> None:
    assert found([*["x"] * index, 7, "x"], list[str]) == {f"/{index}": "Expected a string, got an integer"}


def test_nothing_wrong_refuses_nothing() -> None:
    wrong = WrongFields()
    assert wrong.convert({"at": 1, "absent": None, "more": "x"}, compiled({"at": int, "absent": int})) == {"at": 1}
    wrong.refuse()
    assert (bool(wrong), wrong.names, wrong.found) == (False, set(), ())


def test_words_stand_in_for_those_of_a_type() -> None:
    wrong = WrongFields()
    wrong.convert({"at": 7}, compiled({"at": str}), {"at": "Expected a name"})
    assert wrong.found == (FieldError("/at", "Expected a name"),)
    assert wrong.names == {"at"}


def test_a_wrong_value_is_not_kept() -> None:
    """In a circle of error and traceback it would stay until the garbage collector looks, which is rare."""
    kept: list[weakref.ref[object]] = []

    class Value(list[object]):
        """A list, which can be referred to weakly."""

    def refuse() -> None:
        value = Value(["x"])
        kept.append(weakref.ref(value))
        wrong = WrongFields()
        wrong.convert({"stop": value, "n": "x"}, compiled({"stop": list[int], "n": int}))
        assert len(wrong.error().errors) == 2

    gc.disable()
    try:
        refuse()
        assert [ref() for ref in kept] == [None]
    finally:
        gc.enable()
