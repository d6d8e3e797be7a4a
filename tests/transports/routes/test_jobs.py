"""HTTP with keys: tokens, tickets, admins, CORS, the end of the old paths, and what is counted. In this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.scripted import WALL_START_MS
from tests.transports.keys import ANN, BOB, JSON, KEYS, ROOT, House
from worker import errors
from worker.jobs.job import Job
from worker.operations.worker_check import WorkerCheck
from worker.transports.access import cors

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"
PAGE = "https://page.example"
PATHS = ["/v1/jobs", f"/v1/jobs/{ID}", f"/v1/jobs/{ID}/stream", "/v1/inference", "/health", "/v1/ready"]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A worker with the keys of ann, bob and root, and a friend's page."""
    return House(tmp_path / "keys.toml", origins_allowed=(PAGE,))


async def create(house: House, key: str | None = ANN, **fields: Any) -> dict[str, Any]:
    """Create a job that ends at once and return the answer."""
    response = await house.ask("POST", "/v1/jobs", key, json={"operation": "worker_check", **fields})
    assert response.status_code == 200, await response.get_data()
    answer: dict[str, Any] = await response.get_json()
    return answer


async def refused(response: Any) -> tuple[int, str]:
    """Return status and code of a refusal."""
    problem = json.loads(await response.get_data())
    assert response.content_type == "application/problem+json"
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"]


# ---- tokens ----------------------------------------------------------------------------------------------------------


async def test_the_holder_of_a_key_makes_tokens_for_users(house: House) -> None:
    response = await house.ask("POST", "/v1/tokens", ANN, json={"ttl_s": 30, "user": "eve@home"})
    made = await response.get_json()
    assert (made["expires_in_s"], made["principal"]) == (30, "ann/eve@home")
    assert response.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in response.headers
    job = await create(house, made["token"])
    assert (await house.ask("GET", f"/v1/jobs/{job['job_id']}", made["token"])).status_code == 200
    assert await refused(await house.ask("GET", f"/v1/jobs/{job['job_id']}", ANN)) == (404, "job_not_found")
    assert await refused(await house.ask("POST", "/v1/tokens", made["token"], json={})) == (403, "forbidden")
    house.stage.clock.advance(30_000)
    assert await refused(await house.ask("GET", "/v1/jobs", made["token"])) == (401, "unauthorized")


async def test_a_token_is_good_for_ten_minutes_unless_it_is_said(tmp_path: Path) -> None:
    for most, expected in ((86_400, 600), (60, 60)):
        house = House(tmp_path / "keys.toml", token_ttl_max_s=most)
        made = await (await house.ask("POST", "/v1/tokens", ANN, json={})).get_json()
        assert made["expires_in_s"] == expected


async def test_no_token_outlives_its_key(tmp_path: Path) -> None:
    house = House(tmp_path / "keys.toml", KEYS.replace("weight = 3", "expires_at = 2025-10-30T16:00:00Z"))
    house.stage.clock.now_ms = 1_761_840_000_000 - WALL_START_MS - 20_000
    made = await (await house.ask("POST", "/v1/tokens", ANN, json={"ttl_s": 60})).get_json()
    assert made["expires_in_s"] == 20


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"ttl_s": 0}, "/ttl_s"),
        ({"ttl_s": 86_401}, "/ttl_s"),
        ({"ttl_s": "60"}, "/ttl_s"),
        ({"user": "a/b"}, "/user"),
        ({"user": "x" * 65}, "/user"),
        ({"user": "a\n"}, "/user"),
        ({"cookie": 1}, "/cookie"),
    ],
)
async def test_a_wrong_request_for_a_token(house: House, body: dict[str, object], pointer: str) -> None:
    response = await house.ask("POST", "/v1/tokens", ANN, json=body)
    assert await refused(response) == (422, "invalid_params")
    assert [wrong["pointer"] for wrong in json.loads(await response.get_data())["errors"]] == [pointer]


async def test_a_worker_without_keys_makes_no_tokens() -> None:
    assert await refused(await House().ask("POST", "/v1/tokens", json={})) == (403, "forbidden")


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
async def test_a_token_as_cookie(house: House, scheme: str, secure: bool) -> None:
    origin = {"Origin": f"{scheme}://localhost"}
    response = await house.ask("POST", "/v1/tokens", ANN, origin, json={"cookie": True, "ttl_s": 30})
    token = (await response.get_json())["token"]
    cookie = response.headers["Set-Cookie"]
    name, *attributes = [part.strip() for part in cookie.split(";")]
    assert name == f"jobwire={token}"
    assert {"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=30"} <= set(attributes)
    assert ("Secure" in attributes) is secure
    sent = {"Cookie": f"jobwire={token}"}
    listing = await house.ask("GET", "/v1/jobs", None, {**sent, **origin})
    assert listing.status_code == 200
    assert await refused(await house.ask("GET", "/v1/jobs", None, sent)) == (403, "forbidden")


# ---- tickets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_the_sse_url_is_enough_to_read_the_job(house: House, accept: str) -> None:
    created = await create(house)
    for url in (created["sse_url"], created["sse_url"].replace("/jobs/", "/inference/")):
        response = await house.ask("GET", url, None, {"Accept": accept})
        assert response.status_code == 200
        text = (await response.get_data()).decode()
        assert "Hello from the worker" in text or "worker" in text
    detail = await (await house.ask("GET", created["sse_url"].replace("/stream", ""))).get_json()
    assert detail["sse_url"] == created["sse_url"]
    assert "text" in detail


async def test_a_ticket_reads_and_does_nothing_else(house: House) -> None:
    created = await create(house)
    job_id, ticket = created["job_id"], created["sse_url"].partition("?")[2]
    for method, path in [("DELETE", f"/v1/jobs/{job_id}"), ("GET", "/v1/jobs"), ("POST", "/v1/tokens")]:
        body = {"json": {}} if method == "POST" else {}
        assert await refused(await house.ask(method, f"{path}?{ticket}", **body)) == (401, "unauthorized")
    assert await refused(await house.ask("POST", f"/v1/jobs?{ticket}", json={"prompt": "Hi"})) == (401, "unauthorized")
    token = ticket.partition("=")[2]
    assert await refused(await house.ask("GET", "/v1/jobs", token)) == (401, "unauthorized")


async def test_a_ticket_that_was_changed_or_is_for_another_job(house: House) -> None:
    first, second = await create(house), await create(house)
    ticket = second["sse_url"].partition("?")[2]
    stream = f"/v1/jobs/{first['job_id']}/stream"
    for query in (ticket, ticket[:-1], "ticket=", "ticket=x.y", "ticket=%ED%A0%80"):
        response = await house.ask("GET", f"{stream}?{query}")
        problem = json.loads(await response.get_data())
        assert (problem["status"], problem["code"]) == (401, "unauthorized")
        assert "ticket" in problem["detail"]


async def test_a_key_in_the_header_goes_before_a_ticket(house: House) -> None:
    created = await create(house)
    assert await refused(await house.ask("GET", created["sse_url"], BOB)) == (404, "job_not_found")
    assert (await house.ask("GET", f"/v1/jobs/{created['job_id']}?ticket=old", ANN)).status_code == 200


async def test_a_stream_ends_when_its_key_is_taken_away(house: House) -> None:
    job = make_running(house)
    fields = {"Host": "localhost", "Accept": "text/event-stream"}
    async with house.client.request(house.gateway.sse_url(job), headers=fields) as stream:
        await stream.send_complete()
        assert b"retry" in await stream.receive()
        assert b"queued" in await stream.receive()
        assert job.watchers == 1
        house.rewrite("")
        (connection,) = house.gateway.connections
        connection.tick(house.stage.clock.now_ms)
        response = await stream.as_response()
    assert response.status_code == 200
    # The job is its owner's, and goes on.
    assert (job.watchers, job.state) == (0, "queued")


def make_running(house: House) -> Job:
    """Return a job of ann that waits."""
    request = house.gateway.operations["infer"].parse({"prompt": "Hi"}, house.gateway.limits)
    return house.stage.jobs.create(house.access.authenticate(ANN).principal, None, request)[0]


# ---- admins ----------------------------------------------------------------------------------------------------------


async def test_an_admin_lists_and_cancels_the_jobs_of_all(house: House) -> None:
    job = make_running(house)
    await create(house, BOB)
    everybodys = (await (await house.ask("GET", "/v1/jobs?all=1", ROOT)).get_json())["jobs"]
    assert [item["principal"] for item in everybodys] == ["ann", "bob"]
    assert (await (await house.ask("GET", "/v1/jobs", ROOT)).get_json())["jobs"] == []
    own = (await (await house.ask("GET", "/v1/jobs?all=0", ANN)).get_json())["jobs"]
    assert [item["job_id"] for item in own] == [job.id]
    assert "principal" not in own[0]
    path = f"/v1/jobs/{job.id}"
    assert await refused(await house.ask("DELETE", path, ROOT)) == (404, "job_not_found")
    assert await refused(await house.ask("DELETE", f"{path}?principal=ann", BOB)) == (403, "forbidden")
    assert await refused(await house.ask("GET", "/v1/jobs?all=1", BOB)) == (403, "forbidden")
    assert job.state == "queued"
    assert (await house.ask("DELETE", f"{path}?principal=ann", ROOT)).status_code == 200
    assert job.state == "cancelled"
    assert (await house.ask("DELETE", f"{path}?principal=ann", ANN)).status_code == 200


# ---- limits ----------------------------------------------------------------------------------------------------------


async def test_a_key_over_its_rate_is_told_when_to_come_back(house: House) -> None:
    for _ in range(2):
        response = await house.ask("POST", "/v1/jobs", BOB, json={"prompt": "Hi"})
        assert response.status_code == 200
    response = await house.ask("POST", "/v1/jobs", BOB, json={"prompt": "Hi"})
    assert await refused(response) == (429, "rate_limited")
    assert (await response.get_json())["retry_after_ms"] == 30_000
    assert response.headers["Retry-After"] == "30"
    # Others, repeats, and what needs no engine are not concerned.
    await create(house, BOB)
    assert (await house.ask("POST", "/v1/jobs", ANN, json={"prompt": "Hi"})).status_code == 200


# ---- CORS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PATHS[:4], "/v1/tokens", "/v1/nowhere"])
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


# ---- the end of the old paths ----------------------------------------------------------------------------------------

NOTICE = {
    "Deprecation": "@1795478400",
    "Sunset": "Wed, 24 Nov 2027 00:00:00 GMT",
    "Link": '</v1/jobs>; rel="successor-version"',
}


@pytest.mark.parametrize(
    ("version", "notice", "gone"),
    [
        ("0.1.0", False, False),
        ("0.2.9", False, False),
        ("0.3.0", True, False),
        ("0.3.0rc1", True, False),
        ("0.10", True, False),
        ("1.0.0", True, True),
        ("1.0rc1", True, True),
        ("12.1", True, True),
    ],
)
async def test_the_old_paths_go_away_release_by_release(version: str, notice: bool, gone: bool) -> None:
    house = House(version=version)
    job, _ = house.stage.jobs.create(
        house.access.authenticate(None).principal, None, WorkerCheck().parse({}, house.gateway.limits)
    )
    old = [
        await house.ask("POST", "/v1/inference", json={"operation": "worker_check"}),
        await house.ask("GET", f"/v1/inference/{job.id}/stream"),
        await house.ask("POST", "/v1/inference", json={"operation": "frobnicate"}),
        await house.ask("GET", f"/v1/inference/{ID}/stream"),
        await house.ask("GET", "/v1/inference"),
        await house.ask("GET", "/v1/inference/nowhere"),
    ]
    expected = [410] * len(old) if gone else [200, 200, 400, 404, 405, 404]
    assert [answer.status_code for answer in old] == expected
    for answer in old:
        sent = {name: answer.headers[name] for name in NOTICE if name in answer.headers}
        assert sent == (NOTICE if notice else {})
        if gone:
            problem = await answer.get_json()
            assert (problem["type"], problem["code"]) == ("urn:jobwire:error:gone", "GONE")
            assert "/v1/jobs" in problem["detail"]
    for path, status in (("/v1/jobs", 200), ("/v1/inferences", 404)):
        new = await house.ask("GET", path)
        assert new.status_code == status
        assert not NOTICE.keys() & set(new.headers.keys())


# ---- bodies and counts -----------------------------------------------------------------------------------------------

HALF = '{"prompt": "Hi", "operation": "\\ud83d", "job_id": "\\udead", "temperature": "\\ud83d"}'


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/inference"])
@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/event-stream"])
@pytest.mark.parametrize(
    "body",
    [
        HALF,
        '{"prompt": "Hi", "operation": "\\ud83d"}',
        '{"prompt": "Hi", "temperature": "\\ud83d"}',
        '{"prompt": "Hi", "stop": ["\\ud83d", 1]}',
        '{"prompt": 7, "\\ud83d": 1}',
        '{"messages": [{"role": "\\ud83d", "content": "\\ud83d"}]}',
    ],
)
async def test_half_characters_are_a_mistake_of_the_client_never_ours(path: str, accept: str, body: str) -> None:
    house = House()
    response = await house.ask("POST", path, None, {**JSON, "Accept": accept}, data=body.encode())
    assert response.status_code in (400, 422)
    json.loads(await response.get_data())


async def test_half_characters_in_a_path(house: House) -> None:
    for path in ("/v1/jobs/%ED%A0%80", "/v1/jobs/%ED%A0%80/stream", "/%ED%A0%80", "/v1/inference/%ff/stream"):
        response = await house.ask("GET", path, ANN)
        assert response.status_code == 404
        json.loads(await response.get_data())


async def test_half_characters_that_reach_an_answer_become_question_marks() -> None:
    """Whoever raises an error may quote what was sent."""
    house = House()

    class Broken:
        name = "broken"

        def parse(self, *_: object) -> None:
            raise errors.UnsupportedOperation("no \ud83d here", errors=(errors.FieldError("/\ud83d", "x"),))

    house.gateway.operations["broken"] = Broken()  # type: ignore[index]
    for accept in ("application/json", "*/*"):
        body = {"operation": "broken"}
        response = await house.ask("POST", "/v1/jobs", None, {"Accept": accept}, json=body)
        assert response.status_code == 400
        assert "no ? here" in (await response.get_data()).decode()


async def test_refusals_are_counted_by_code(house: House) -> None:
    await house.ask("GET", "/v1/jobs", "wrong")
    await house.ask("GET", f"/v1/jobs/{ID}", ANN)
    await house.ask("GET", f"/v1/inference/{ID}/stream", ANN)
    await house.ask("GET", "/v1/jobs", ANN, {"Origin": "https://evil.example"})
    await house.ask("GET", "/nowhere")
    await house.ask("PUT", "/v1/jobs")
    await house.ask("GET", "/v1/jobs", ANN)
    assert dict(house.gateway.tally.refusals) == {
        "unauthorized": 1,
        "job_not_found": 2,
        "forbidden": 1,
        "not_found": 1,
        "method_not_allowed": 1,
    }


async def test_keys_are_in_no_answer(house: House) -> None:
    for key in (ANN, "wrong-secret-of-somebody"):
        for path in PATHS:
            response = await house.ask("GET", path, key)
            body = b"" if "stream" in path and response.status_code == 200 else await response.get_data()
            assert key.encode() not in body
    assert ANN in KEYS
