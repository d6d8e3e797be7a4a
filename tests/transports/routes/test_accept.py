"""Which dialect and which form an Accept header asks for (RFC 9110, 12.5.1), and in which form a body may come."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transports.keys import JSON, House, refused
from worker.transports.routes.legacy import Accepted

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"
BODY = b'{"operation":"worker_check"}'
STREAM, MODERN, LEGACY = "stream", "modern", "legacy"

ACCEPTS = [
    ("text/event-stream", STREAM, True),
    ("Text/Event-Stream", STREAM, True),
    ("text/event-stream;charset=utf-8", STREAM, True),
    ('text/event-stream; x="a, b;q=0"', STREAM, True),
    (" text/event-stream ; q=0.001 , */*;q=0", STREAM, True),
    ("text/*", STREAM, True),
    ("TEXT/*;q=0.5", STREAM, True),
    ("application/json, text/event-stream", STREAM, True),
    ("text/event-stream, application/json", STREAM, True),
    ("text/event-stream;q=0.5, */*;q=0.1", STREAM, True),
    ("application/json;q=0.5, text/event-stream;q=0.6", STREAM, True),
    ("application/json;q=0.6, text/event-stream;q=0.5", MODERN, True),
    ("application/json, text/event-stream;q=0", MODERN, False),
    ("application/json, text/event-stream;q=0.000", MODERN, False),
    ("text/event-stream;q=0, text/*, application/json", MODERN, False),
    ("text/event-stream;q=0.1, */*", MODERN, True),
    ("application/json", MODERN, False),
    ("APPLICATION/JSON", MODERN, False),
    ("application/json;profile=x", MODERN, False),
    ("application/*", MODERN, False),
    ("application/problem+json", MODERN, False),
    ("*/*", LEGACY, False),
    ("", LEGACY, False),
    (",", LEGACY, False),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", LEGACY, False),
    ("text/event-stream;q=0", LEGACY, False),
    ("text/event-stream;q=0, */*", LEGACY, False),
    ("application/json;q=0", LEGACY, False),
    ("x-text/event-stream", LEGACY, False),
    ("text/event-streams", LEGACY, False),
    ("text/event-stream-x, */*", LEGACY, False),
    ("application/jsonl", LEGACY, False),
    ('x/y;p="text/event-stream, application/json"', LEGACY, False),
    ("*/*;p=application/json", LEGACY, False),
    ("x/y," * 5000 + "text/event-stream", LEGACY, False),
]
"""A header; the form of an answer to POST (legacy: only of errors); whether the stream of a GET is modern."""


@pytest.mark.parametrize(("accept", "form", "modern_stream"), ACCEPTS)
async def test_what_an_accept_header_asks_for(accept: str, form: str, modern_stream: bool) -> None:
    house = House()
    made = await house.ask("POST", "/v1/jobs", headers={**JSON, "Accept": accept}, data=BODY)
    assert made.content_type == ("text/event-stream; charset=utf-8" if form == STREAM else "application/json")
    await made.get_data()
    error = await (await house.ask("GET", f"/v1/jobs/{ID}", headers={"Accept": accept})).get_json()
    assert error["code"] == ("JOB_NOT_FOUND" if form == LEGACY else "job_not_found")
    created = await (await house.ask("POST", "/v1/jobs", headers=JSON, data=BODY)).get_json()
    stream = await (await house.ask("GET", created["sse_url"], headers={"Accept": accept})).get_data()
    assert (b"id: " in stream) == modern_stream


async def test_the_lines_of_a_header_are_one_list() -> None:
    house = House()
    headers = [("Host", "localhost"), ("Accept", "*/*"), ("Accept", "text/event-stream")]
    headers += [("Content-Type", "application/json")]
    made = await house.client.open("/v1/jobs", method="POST", headers=headers, data=BODY)
    assert made.content_type == "text/event-stream; charset=utf-8"


@given(st.text(max_size=100) | st.text(alphabet='text/evn-sramq=01.*;,", ', max_size=60))
def test_any_text_has_a_meaning(header: str) -> None:
    accepted = Accepted(header)
    assert 0 <= accepted.quality("text/event-stream") <= 1
    assert accepted.names("text/event-stream") <= (accepted.quality("text/event-stream") > 0)


# ---- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/inference"])
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=UTF-8",
        'application/json ;charset="utf-8"',
        "application/vnd.api+json",
        "application/ld+json; profile=x",
    ],
)
async def test_a_body_is_json_by_any_name(path: str, content_type: str) -> None:
    answer = await House().ask("POST", path, headers={"Content-Type": content_type}, data=BODY)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/jsonl", "text/json", "multipart/form-data", "x+json", "\xff", ";"]
)
async def test_a_body_of_another_type_is_415(content_type: str) -> None:
    answer = await House().ask("POST", "/v1/jobs", headers={"Content-Type": content_type}, data=BODY)
    assert await refused(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "zstd", "deflate", "gzip, identity", "x" * 5000])
async def test_an_encoded_body_is_415_and_the_encoding_is_named(coding: str) -> None:
    headers = {**JSON, "Content-Encoding": coding}
    for path in ("/v1/jobs", "/v1/tokens", "/v1/inference"):
        answer = await House().ask("POST", path, headers=headers, data=gzip.compress(BODY))
        problem = await answer.get_json()
        assert (answer.status_code, problem["status"]) == (415, 415)
        assert repr(coding.split(",")[0][:150])[:-1] in problem["detail"]
        assert "without" in problem["detail"]
        assert len(problem["detail"]) < 400


@pytest.mark.parametrize("coding", ["identity", "Identity", "", " , identity"])
async def test_a_body_that_is_not_encoded_may_say_so(coding: str) -> None:
    answer = await House().ask("POST", "/v1/jobs", headers={**JSON, "Content-Encoding": coding}, data=BODY)
    assert answer.status_code == 200


async def test_a_byte_order_mark_before_a_body_is_skipped() -> None:
    answer = await House().ask("POST", "/v1/jobs", headers=JSON, data=b"\xef\xbb\xbf" + BODY)
    assert answer.status_code == 200


async def test_a_body_with_too_many_members_or_messages_is_refused() -> None:
    house = House(json_members_max=64, messages_max=2)
    many = b'{"prompt":"Hi","x":[' + b"1," * 64 + b"1]}"
    assert await refused(await house.ask("POST", "/v1/jobs", headers=JSON, data=many)) == (400, "bad_frame")
    messages = [{"role": "user", "content": "Hi"}] * 3
    answer = await house.ask("POST", "/v1/jobs", json={"messages": messages})
    problem = await answer.get_json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("invalid_params", "/messages")
    assert "at most 2 messages, got 3" in problem["detail"]
