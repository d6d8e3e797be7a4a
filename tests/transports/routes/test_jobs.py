"""Calls about jobs where there are keys: by ticket, as an admin, and within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.transports.keys import ANN, BOB, ROOT, House, create, make_running, refused

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


# ---- admins ----------------------------------------------------------------------------------------------------------


async def test_an_admin_lists_and_cancels_the_jobs_of_all(house: House) -> None:
    job = make_running(house)
    await create(house, BOB)
    everybodys = (await (await house.ask("GET", "/v1/jobs?all=1", ROOT)).get_json())["jobs"]
    assert [item["principal"] for item in everybodys] == ["bob", "ann"]
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


async def test_where_there_are_no_keys_every_caller_may_do_what_an_admin_may() -> None:
    house = House()
    job_id = (await create(house, None, job_id="a-job-of-somebody"))["job_id"]
    (item,) = (await (await house.ask("GET", "/v1/jobs?all=1")).get_json())["jobs"]
    assert (item["job_id"], item["principal"]) == (job_id, "local")
    assert (await house.ask("DELETE", f"/v1/jobs/{job_id}?principal=local")).status_code == 200
    response = await house.ask("DELETE", f"/v1/jobs/{job_id}?principal=ann")
    assert await refused(response) == (404, "job_not_found")


# ---- pages -----------------------------------------------------------------------------------------------------------


async def test_a_list_has_pages(house: House) -> None:
    made = [(await create(house, key))["job_id"] for key in (ANN, BOB, ANN, ANN, BOB)]

    async def pages(query: str, key: str) -> list[list[str]]:
        found, after = list[list[str]](), ""
        while True:
            body = await (await house.ask("GET", f"/v1/jobs?limit=2{query}{after}", key)).get_json()
            found.append([job["job_id"] for job in body["jobs"]])
            if "next" not in body:
                return found
            after = f"&after={body['next']}"

    assert await pages("", ANN) == [[made[3], made[2]], [made[0]]]
    assert await pages("", BOB) == [[made[4], made[1]]]
    assert await pages("&all=1", ROOT) == [[made[4], made[3]], [made[2], made[1]], [made[0]]]
    assert await pages("", ROOT) == [[]]


async def test_a_page_goes_on_after_jobs_that_are_forgotten(tmp_path: Path) -> None:
    house = House(tmp_path / "keys.toml", retention_s=10)
    old = await create(house)
    job = make_running(house)
    await create(house)
    body = await (await house.ask("GET", "/v1/jobs?limit=1", ANN)).get_json()
    assert job.id not in body["next"]
    house.stage.clock.advance(10_000)
    house.stage.jobs.sweep()
    rest = await (await house.ask("GET", f"/v1/jobs?after={body['next']}", ANN)).get_json()
    assert [item["job_id"] for item in rest["jobs"]] == [job.id]
    assert old["job_id"] not in str(rest)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=", "after=x", "after=-1", "after="])
async def test_a_wrong_page_is_refused_by_name(house: House, query: str) -> None:
    response = await house.ask("GET", f"/v1/jobs?{query}", ANN)
    assert await refused(response) == (422, "invalid_params")
    assert (await response.get_json())["errors"][0]["pointer"] == "/" + query.partition("=")[0]


# ---- limits ----------------------------------------------------------------------------------------------------------


async def test_a_key_over_its_rate_is_told_when_to_come_back(house: House) -> None:
    for _ in range(2):
        response = await house.ask("POST", "/v1/jobs", BOB, json={"prompt": "Hi"})
        assert response.status_code == 200
    response = await house.ask("POST", "/v1/jobs", BOB, json={"prompt": "Hi"})
    assert await refused(response) == (429, "rate_limited")
    assert (await response.get_json())["retry_after_ms"] == 30_000
    assert response.headers["Retry-After"] == "30"
    # Not even what needs no engine; others are not concerned.
    response = await house.ask("POST", "/v1/jobs", BOB, json={"operation": "worker_check"})
    assert await refused(response) == (429, "rate_limited")
    assert (await house.ask("POST", "/v1/jobs", ANN, json={"prompt": "Hi"})).status_code == 200


POLICY = '"jobs";q=2;w=60'


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/inference"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*"])
async def test_every_answer_tells_what_is_left_of_the_rates(house: House, path: str, accept: str) -> None:
    headers = {"Accept": accept}

    async def left(method: str, path: str, **options: Any) -> tuple[int, str]:
        response = await house.ask(method, path, BOB, headers, **options)
        assert response.headers["RateLimit-Policy"] == POLICY
        return response.status_code, response.headers["RateLimit"]

    body = {"json": {"operation": "worker_check"}}
    assert await left("GET", "/v1/jobs") == (200, '"jobs";r=2;t=0')
    assert await left("POST", path, **body) == (200, '"jobs";r=1;t=30')
    assert await left("POST", path, json={"operation": "dance"}) == (400, '"jobs";r=1;t=30')
    house.stage.clock.advance(500)
    assert await left("POST", path, **body) == (200, '"jobs";r=0;t=60')
    assert await left("POST", path, **body) == (429, '"jobs";r=0;t=60')
    house.stage.clock.advance(60_000)
    assert await left("GET", "/v1/jobs") == (200, '"jobs";r=2;t=0')


async def test_rates_are_told_to_those_who_have_some(house: House, tmp_path: Path) -> None:
    for key in (ANN, "wrong-key", None):
        response = await house.ask("POST", "/v1/jobs", key, json={"operation": "worker_check"})
        assert not [name for name in response.headers if "ratelimit" in name[0].lower()]
    # A ticket is for strangers.
    url = (await create(house, BOB))["sse_url"]
    assert "RateLimit" not in (await house.ask("GET", url.replace("/stream", ""))).headers
    open_house = House(jobs_per_minute_max=60, tokens_per_minute_max=600)
    response = await open_house.ask("POST", "/v1/jobs", json={"prompt": "1234", "max_tokens": 99})
    assert response.headers["RateLimit-Policy"] == '"jobs";q=60;w=60, "tokens";q=600;w=60'
    assert response.headers["RateLimit"] == '"jobs";r=59;t=1, "tokens";r=500;t=10'


async def test_a_post_tells_the_priority_in_force(house: House) -> None:
    for key, wish, priority in ((ANN, 9, 5), (ANN, 2, 2)):
        response = await house.ask("POST", "/v1/jobs", key, json={"prompt": "Hi", "priority": wish})
        assert (await response.get_json())["priority"] == priority
    assert (await (await House().ask("POST", "/v1/jobs", json={"prompt": "Hi", "priority": 9})).get_json())[
        "priority"
    ] == 9
