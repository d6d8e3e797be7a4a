"""Fields that the worker does not know, named over HTTP: in the answer, or in the stream and its header."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any
from urllib.parse import unquote

import pytest

from tests.transports.keys import JSON, House

EVENTS = {"Accept": "text/event-stream", "Content-Type": "application/json"}
BODY = {"operation": "worker_check", "max_token": 5, "ein Größe,x": 1}
NAMES = ["max_token", "ein Größe,x"]


def run(test: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine to its end."""
    return asyncio.run(test)


async def post(headers: dict[str, str], path: str = "/v1/jobs", body: Any = BODY) -> tuple[Any, str]:
    """Send a POST to a fresh worker; return the response and its body."""
    response = await House(origins_allowed=("https://app.example",)).ask(
        "POST", path, headers=headers, data=json.dumps(body)
    )
    return response, (await response.get_data()).decode()


def narrations(stream: str) -> list[dict[str, Any]]:
    """Return the narration of a stream."""
    events = [json.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
    return [event for event in events if event["type"] == "narration"]


def test_an_answer_names_them() -> None:
    response, text = run(post(JSON))
    assert (response.status_code, json.loads(text)["ignored"]) == (200, NAMES)
    assert "X-Jobwire-Ignored" not in response.headers


def test_a_stream_names_them_in_its_header_and_in_its_first_narration() -> None:
    response, text = run(post({**EVENTS, "Origin": "https://app.example"}))
    header = response.headers["X-Jobwire-Ignored"]
    assert [unquote(name) for name in header.split(",")] == NAMES
    assert header.isascii()
    assert "X-Jobwire-Ignored" in response.headers["Access-Control-Expose-Headers"]
    first, *others = narrations(text)
    assert first["ignored"] == NAMES
    assert first["cursor"]
    assert others and not any("ignored" in narration for narration in others)


def test_nothing_is_named_where_nothing_is_ignored() -> None:
    response, text = run(post(EVENTS, body={"operation": "worker_check"}))
    assert "X-Jobwire-Ignored" not in response.headers
    assert "ignored" not in text


@pytest.mark.parametrize(
    ("path", "accept"), [("/v1/jobs", "*/*"), ("/v1/inference", "application/json"), ("/v1/inference", "*/*")]
)
def test_older_clients_are_told_nothing(path: str, accept: str) -> None:
    response, text = run(post({**JSON, "Accept": accept}, path))
    assert response.status_code == 200
    assert "ignored" not in json.loads(text)
    assert "X-Jobwire-Ignored" not in response.headers


@pytest.mark.parametrize("headers", [JSON, EVENTS])
def test_all_that_is_wrong_with_a_post_is_one_answer(headers: dict[str, str]) -> None:
    response, text = run(post(headers, body={"window": -1, "coalesce_ms": "a", "top_p": 7, "n": -1}))
    found = [error["pointer"] for error in json.loads(text)["errors"]]
    assert (response.status_code, set(found)) == (422, {"/window", "/coalesce_ms", "/top_p", "/n", "/prompt"})


def test_older_clients_get_all_that_is_wrong_too() -> None:
    response, text = run(post({**JSON, "Accept": "*/*"}, body={"top_p": 7, "n": -1, "coalesce_ms": -1}))
    fields = {error["field"] for error in json.loads(text)["errors"]}
    assert (response.status_code, fields) == (400, {"coalesce_ms", "top_p", "n", "prompt"})
