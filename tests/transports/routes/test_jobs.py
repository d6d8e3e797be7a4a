"""Calls about jobs where there are keys: by ticket, as an admin, and within limits."""

from __future__ import annotations

import json

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
