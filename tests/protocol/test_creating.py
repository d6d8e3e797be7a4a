"""What is asked for, checked over every way in: all that is wrong in one answer, and what is ignored by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import ANN, LIMITS
from tests.protocol.wire import ID, OTHER, Client, Sent, Wire
from worker.errors import InvalidParams
from worker.operations.infer import FIELDS
from worker.protocol import creating, credentials, decoding
from worker.protocol.creating import IGNORED_CHARS_MAX, IGNORED_MAX
from worker.protocol.credentials import TTL_S, TokenRequest
from worker.protocol.host import Caller

ENVELOPE: dict[str, object] = {
    "job_id": "short",
    "after": 7,
    "channels": ["token", "smoke"],
    "window": -1,
    "coalesce_ms": "a",
    "ref": 7,
}
BODY: dict[str, object] = {"top_p": 7, "n": -1, "stop": ["ok", ""], "messages": [{"role": "bot", "content": "Hi"}]}
POINTERS = {"channels": "/channels/1", "stop": "/stop/1", "messages": "/messages/0/role"}


def pointers(error: dict[str, Any]) -> list[str]:
    """Return the pointers of a problem object."""
    return [item["pointer"] for item in error.get("errors", [])]


def pointed(names: set[str]) -> set[str]:
    """Return where the errors of these fields are."""
    return {POINTERS.get(name, f"/{name}") for name in names}


def connected() -> Client:
    """Open a connection."""
    return Wire().connect()


# ---- wrong fields ----------------------------------------------------------------------------------------------------


def test_envelope_delivery_and_body_are_refused_in_one_answer() -> None:
    error = connected().ask("create", window=-1, coalesce_ms="a", top_p=7, n=-1)["error"]
    assert pointers(error) == ["/window", "/coalesce_ms", "/top_p", "/n", "/prompt"]
    for name in ("window: ", "coalesce_ms: ", "top_p: ", "n: ", "prompt: "):
        assert name in error["detail"]


@given(st.sets(st.sampled_from([*ENVELOPE, *BODY]), min_size=1))
def test_any_wrong_fields_of_a_create_are_named_exactly(names: set[str]) -> None:
    good = {} if "messages" in names else {"prompt": "Hi"}
    wire = Wire()
    error = wire.connect().ask("create", **good, **{name: (ENVELOPE | BODY)[name] for name in names})["error"]
    assert error["code"] == "invalid_params"
    assert set(pointers(error)) == pointed(names)
    assert len(pointers(error)) == len(names)
    assert wire.stage.jobs.list("ann") == []


@given(st.sets(st.sampled_from([*ENVELOPE, *BODY]), min_size=1))
def test_any_wrong_fields_of_a_post_are_named_exactly(names: set[str]) -> None:
    client, good = connected(), {} if "messages" in names else {"prompt": "Hi"}
    body = {**good, **{name: (ENVELOPE | BODY)[name] for name in names}}
    with pytest.raises(InvalidParams) as refused:
        creating.create(client, Caller(ANN), decoding.create_of_post(body, LIMITS))
    found = [error.pointer for error in refused.value.errors]
    assert (set(found), len(found)) == (pointed(names), len(names))


@given(st.sets(st.sampled_from(list(ENVELOPE)), min_size=1))
def test_any_wrong_fields_of_a_subscribe_are_named_exactly(names: set[str]) -> None:
    fields = {"job_id": ID, **{name: ENVELOPE[name] for name in names}}
    assert set(pointers(connected().ask("subscribe", **fields)["error"])) == pointed(names)


@given(st.sets(st.sampled_from(["ttl_s", "user", "cookie"]), min_size=1), st.booleans())
def test_any_wrong_fields_of_a_token_request_are_named_exactly(names: set[str], too_long: bool) -> None:
    wrong = {"ttl_s": 10**9 if too_long else 0, "user": "not allowed!", "cookie": "yes"}
    settings = Wire().stage.settings
    with pytest.raises(InvalidParams) as refused:
        credentials.parse({name: wrong[name] for name in names}, settings)
    assert {error.pointer for error in refused.value.errors} == {f"/{name}" for name in names}


@pytest.mark.parametrize(
    ("body", "asked", "ttl_s"),
    [
        ({}, TokenRequest(), TTL_S),
        ({"ttl_s": 1, "user": None, "cookie": True, "more": 1}, TokenRequest(ttl_s=1, cookie=True), 1),
        ({"user": "anna@shop"}, TokenRequest(user="anna@shop"), TTL_S),
    ],
)
def test_a_token_request_has_defaults(body: dict[str, Any], asked: TokenRequest, ttl_s: int) -> None:
    assert credentials.parse(body, Wire().stage.settings) == (asked, ttl_s)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("update", {"priority": 10}, ["/priority", "/job_id"]),
        ("ack", {}, ["/job_id", "/cursor"]),
        ("ack", {"job_id": "short", "ref": 7}, ["/job_id", "/ref", "/cursor"]),
        ("subscribe", {"job_id": ID, "window": 9, "coalesce_ms": 501}, ["/window", "/coalesce_ms"]),
    ],
)
def test_missing_fields_are_named_with_the_wrong_ones(kind: str, fields: dict[str, Any], expected: list[str]) -> None:
    assert pointers(connected().ask(kind, **fields)["error"]) == expected


def test_an_unknown_operation_is_refused_with_what_else_is_wrong() -> None:
    error = connected().ask("create", operation="frobnicate", window=-1)["error"]
    assert (error["code"], pointers(error)) == ("unsupported_operation", ["/window", "/operation"])


def test_an_operation_of_the_wrong_type_is_one_of_the_wrong_fields() -> None:
    error = connected().ask("create", operation=7, n=0)["error"]
    assert (error["code"], pointers(error)) == ("invalid_params", ["/operation", "/n", "/prompt"])


@pytest.mark.parametrize("operation", ["status", "worker_check"])
def test_a_wrong_envelope_is_refused_whatever_the_operation(operation: str) -> None:
    assert pointers(connected().ask("create", operation=operation, window=-1)["error"]) == ["/window"]


def test_an_upper_bound_is_named_at_the_first_try() -> None:
    client = connected()
    for value in (-1, 10**6, "x"):
        error = client.ask("create", prompt="Hi", window=value, coalesce_ms=value, n=value, max_tokens=value)["error"]
        assert {item["pointer"]: item["detail"] for item in error["errors"]} == {
            "/window": f"Expected an integer from 0 to {LIMITS.window_frames_max}",
            "/coalesce_ms": f"Expected an integer from 0 to {LIMITS.coalesce_ms_max}",
            "/n": f"Expected an integer from 1 to {LIMITS.choices_max}",
            "/max_tokens": f"Expected an integer from 1 to {LIMITS.max_tokens_max}",
        }


def test_over_http_there_is_no_window() -> None:
    body: dict[str, Any] = {"prompt": "Hi", "window": 0, "coalesce_ms": 20}
    assert decoding.create_of_post(body, LIMITS) == decoding.create_of(body, LIMITS)
    for window in (1, -1, 10**6, "x", True):
        [error] = decoding.create_of_post({"prompt": "Hi", "window": window}, LIMITS).wrong
        assert (error.pointer, error.detail) == ("/window", "Not allowed here: only a WebSocket has a `window`")


def test_no_field_of_an_operation_is_one_of_the_envelope() -> None:
    """It would take part in a job's identity."""
    assert creating.ENVELOPE.isdisjoint(FIELDS)


def test_a_resume_of_a_wrong_id_is_one_error() -> None:
    assert pointers(connected().ask("create", prompt="Hi", job_id="short", after="k-1")["error"]) == ["/job_id"]


# ---- ignored fields --------------------------------------------------------------------------------------------------


def test_unknown_fields_come_back_by_their_names() -> None:
    accepted = connected().ask("create", prompt="Hi", max_token=5, temperature=0, device="cpu", stream=True, seed=None)
    assert accepted["ignored"] == ["max_token", "device", "stream"]


def test_nothing_is_said_where_nothing_is_ignored() -> None:
    client = connected()
    known = {"job_id": ID, "operation": "infer", "window": 1, "coalesce_ms": 5, "channels": ["token"], "ref": "1"}
    assert "ignored" not in client.ask("create", prompt="Hi", max_tokens=5, model="any", unknown=None, **known)
    assert "ignored" not in client.ask("subscribe", job_id=ID, unknown=1)


def test_what_is_known_depends_on_the_operation() -> None:
    accepted = connected().ask("create", operation="worker_check", prompt="Hi")
    assert accepted["ignored"] == ["prompt"]


def test_attaching_names_them_too_but_they_are_no_part_of_the_identity() -> None:
    client = connected()
    body = {"job_id": OTHER, "prompt": "Hi", "max_token": 5}
    assert client.ask("create", **body)["ignored"] == ["max_token"]
    client.pull_all()
    again = client.ask("create", **body)
    assert (again["replayed"], again["ignored"]) == (True, ["max_token"])
    client.pull_all()
    assert client.ask("create", **{**body, "max_token": 6})["replayed"]
    client.pull_all()
    assert client.ask("create", **{**body, "max_tokens": 6})["error"]["code"] == "idempotency_mismatch"


@given(st.dictionaries(st.text(max_size=200), st.integers(), max_size=20))
def test_a_bounded_part_of_any_names_comes_back(unknown: dict[str, int]) -> None:
    client = connected()
    client.send_text(json.dumps({"type": "create", "prompt": "Hi", "operation": "infer", **_renamed(unknown)}))
    accepted: Sent | None = client.pull()
    assert accepted is not None and accepted["type"] == "accepted"
    names = accepted.get("ignored", [])
    assert len(names) == min(len(unknown), IGNORED_MAX)
    assert all(len(name) <= IGNORED_CHARS_MAX for name in names)


def _renamed(fields: dict[str, int]) -> dict[str, int]:
    """Return fields under names that mean nothing."""
    return {f"_{name}".encode(errors="replace").decode(): value for name, value in fields.items()}
