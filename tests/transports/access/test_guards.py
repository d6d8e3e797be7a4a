"""CORS: which pages read the answers, and what a preflight gets."""

from __future__ import annotations

import pytest

from tests.transports.keys import ANN, JSON, PAGE, House, create
from worker.transports.access import cors

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"
PATHS = ["/v1/jobs", f"/v1/jobs/{ID}", f"/v1/jobs/{ID}/stream", "/v1/inference"]


@pytest.mark.parametrize("path", [*PATHS, "/v1/tokens", "/v1/nowhere"])
async def test_a_preflight_of_a_listed_page(house: House, path: str) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "DELETE"}
    response = await house.ask("OPTIONS", path, None, asked)
    assert response.status_code == 204
    assert await response.get_data() == b""
    headers = response.headers
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Access-Control-Max-Age"] == str(cors.PREFLIGHT_MAX_AGE_S)
    assert headers["Vary"] == "Origin"
    methods = set(headers["Access-Control-Allow-Methods"].split(", "))
    assert methods == {"GET", "POST", "DELETE", "OPTIONS"}
    allowed = set(headers["Access-Control-Allow-Headers"].lower().split(", "))
    assert allowed >= {"authorization", "content-type", "last-event-id", "idempotency-key"}


async def test_a_listed_page_reads_every_answer(house: House) -> None:
    origin = {"Origin": PAGE}
    created = await create(house)
    answers = [
        await house.ask("GET", "/v1/jobs", ANN, origin),
        await house.ask("GET", "/v1/jobs", "wrong", origin),
        await house.ask("GET", "/v1/nowhere", None, origin),
        await house.ask("PUT", "/v1/jobs", None, origin),
        await house.ask("POST", "/v1/jobs", ANN, {**JSON, **origin}, data=b"{"),
        await house.ask("GET", created["sse_url"], None, {**origin, "Accept": "text/event-stream"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 404, 405, 400, 200]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        assert "Origin" in answer.headers["Vary"]


async def test_other_pages_and_programs_get_no_such_headers(house: House) -> None:
    asked = {"Access-Control-Request-Method": "GET"}
    for headers, status in [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://evil.example", **asked}, 403),
        ({"Origin": "null"}, 403),
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
    ]:
        method = "OPTIONS" if "Access-Control-Request-Method" in headers else "GET"
        response = await house.ask(method, "/v1/jobs", ANN, headers)
        assert response.status_code == status
        assert not [name for name, _ in response.headers if name.lower().startswith("access-control")]
        # A cache must not give the answer for one page to another.
        assert response.headers["Vary"] == "Origin"


async def test_cookies_are_no_matter_where_there_are_no_keys() -> None:
    response = await House(origins_allowed=(PAGE,)).ask("GET", "/v1/jobs", None, {"Origin": PAGE})
    assert response.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert "Vary" not in (await House().ask("GET", "/v1/jobs")).headers


async def test_options_of_a_program_are_answered_as_ever(house: House) -> None:
    response = await house.ask("OPTIONS", "/v1/jobs")
    assert response.status_code == 200
    assert "POST" in response.headers["Allow"]
