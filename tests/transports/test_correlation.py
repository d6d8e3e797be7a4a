"""Which headers of a request become its correlation, and which are ignored."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.correlation import Correlation
from worker.transports.correlation import correlation_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_first_header_wins() -> None:
    headers = {"x-request-id": "second", "x-correlation-id": "first", "traceparent": PARENT}
    assert correlation_of(headers) == Correlation("first", PARENT)
    assert correlation_of({"x-request-id": "second"}) == Correlation("second")


@pytest.mark.parametrize("strange", ["", "a b", "a\r\nSet-Cookie: x", 'a"b', "x" * 129, "é", "{}"])
def test_a_strange_id_is_replaced(strange: str) -> None:
    made = correlation_of({"x-correlation-id": strange}).correlation_id
    assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_an_id_is_made_for_each_request() -> None:
    assert correlation_of({}) != correlation_of({})


@pytest.mark.parametrize(
    "wrong",
    [
        PARENT.upper(),
        PARENT[:-1],
        f"{PARENT}0",
        PARENT.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    ],
)
def test_a_wrong_trace_context_is_none(wrong: str) -> None:
    assert correlation_of({"traceparent": wrong}).traceparent == ""


def test_a_trace_context_of_a_later_version_may_have_more() -> None:
    assert correlation_of({"traceparent": PARENT.replace("00-", "01-", 1) + "-more"}).traceparent


@given(st.text(), st.text())
def test_whatever_comes_nothing_strange_is_taken(correlation_id: str, parent: str) -> None:
    correlation = correlation_of({"x-correlation-id": correlation_id, "traceparent": parent})
    assert re.fullmatch(r"[A-Za-z0-9._:/+=@-]{1,128}", correlation.correlation_id)
    assert correlation.traceparent in ("", parent)
