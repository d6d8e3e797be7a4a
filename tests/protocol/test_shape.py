"""The shape of a message is checked before it is parsed: depth, members, long numbers; and errors stay small."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import BadFrame, FieldError, InvalidParams, JobwireError
from worker.protocol import decoding, frames

LIMIT = 1 << 20
MANY = 20_000
FIELD = '{"x":%s}'

Json: TypeAlias = Any
TEXT = st.text(alphabet=st.sampled_from('ab,[]{}:"\\ \n\t\u20ac'), max_size=6)
LEAVES = st.none() | st.booleans() | st.integers() | TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=60)


def members(value: Json) -> int:
    """Count what a container holds, at all depths."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return len(inner) + sum(map(members, inner))


def loads(text: str | bytes, members_max: int = MANY) -> bool:
    """Return whether a message is not too deep or too large."""
    try:
        decoding.load(text, LIMIT, members_max)
    except BadFrame as refused:
        assert "deeper" in refused.detail or "members" in refused.detail or "digits" in refused.detail
        return False
    return True


@given(st.dictionaries(TEXT, VALUES), st.booleans(), st.sampled_from([None, 1]))
def test_members_are_counted_exactly(value: dict[str, Json], ascii_only: bool, indent: int | None) -> None:
    """Whatever strings contain, and however it is laid out. 0 lets every message be counted."""
    text, count = json.dumps(value, ensure_ascii=ascii_only, indent=indent), members(value)
    assert loads(text, count)
    assert count == 0 or not loads(text, count - 1)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[0,"]}",'])
def test_a_message_may_be_64_deep(opening: str) -> None:
    close = "}" if opening[0] == "{" else "]"
    for depth, fits in ((1, True), (63, True), (64, False), (65, False), (1000, False)):
        value = opening * depth + ("0" if opening[-1] != "," else '"["') + close * depth
        assert loads(FIELD % value) == fits, depth


def test_many_brackets_are_not_deep_and_those_in_strings_do_not_count() -> None:
    assert loads(FIELD % json.dumps(["[" * 1000, '"[{' * 1000, "\\" * 999, [[]] * 3000]))


def test_a_string_of_commas_has_no_members() -> None:
    assert loads(FIELD % json.dumps(",[{" * 100_000))


@pytest.mark.parametrize(
    "value", ["[" + "0," * MANY + "0]", "[" + "[]," * MANY + "[]]", "[" + '"",' * (3 * MANY) + '""]']
)
def test_too_many_members_are_refused(value: str) -> None:
    with pytest.raises(BadFrame, match="more than 20000 members"):
        decoding.load(FIELD % value, LIMIT, MANY)


def test_a_number_has_1000_digits_at_most_and_text_any_number() -> None:
    assert loads(FIELD % ("9" * 1000))
    assert loads(FIELD % ("-1." + "2" * 1000))
    assert loads(FIELD % json.dumps("9" * 5000))
    assert not loads(FIELD % ("9" * 1001))
    assert not loads(FIELD % ("0." + "1" * 1001))


@given(st.binary(max_size=40) | st.text(alphabet='[]{},:"\\0a ', max_size=40), st.integers(0, 5))
def test_what_is_no_json_is_a_bad_frame(text: str | bytes, members_max: int) -> None:
    try:
        decoding.load(text, LIMIT, members_max)
    except BadFrame:
        return
    assert isinstance(json.loads(text.decode() if isinstance(text, bytes) else text), dict)


# ---- errors ----------------------------------------------------------------------------------------------------------


def encoded(error: JobwireError) -> bytes:
    """Return an error as HTTP answers it."""
    return frames.encode(error.problem())


@given(st.integers(0, 40), st.integers(0, 5000), st.integers(1024, 20_000))
def test_an_error_says_less_where_it_would_be_too_large(fields: int, chars: int, bytes_max: int) -> None:
    wrong = tuple(FieldError(f"/messages/{number}/role", "\u20ac" * 120) for number in range(fields))
    error = InvalidParams("\x01" * chars, errors=wrong)
    data = frames.encode_error(error, bytes_max, encoded)
    problem = json.loads(data)
    assert len(data) <= bytes_max
    assert problem["code"] == "invalid_params"
    if len(encoded(error)) <= bytes_max:
        assert data == encoded(error)
    else:
        assert problem["detail"].endswith("…") or not chars
