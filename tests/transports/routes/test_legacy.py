"""How the paths of the older worker go away, release by release."""

from __future__ import annotations

import pytest

from tests.transports.keys import House
from worker.operations.fields import WrongFields
from worker.operations.worker_check import WorkerCheck

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"


@pytest.mark.parametrize(
    ("accept", "stream_is_modern", "errors_are_modern"),
    [("text/event-stream", True, True), ("application/json", False, True), ("*/*", False, False)],
)
async def test_the_dialects_of_a_stream_and_its_errors(
    accept: str, stream_is_modern: bool, errors_are_modern: bool
) -> None:
    """A stream is no JSON, but an error is."""
    house = House()
    created = await (await house.ask("POST", "/v1/jobs", json={"operation": "worker_check"})).get_json()
    stream = await (await house.ask("GET", created["sse_url"], headers={"Accept": accept})).get_data()
    error = await (await house.ask("GET", f"/v1/jobs/{ID}/stream", headers={"Accept": accept})).get_json()
    assert (b"id: " in stream, b"[DONE]" not in stream.splitlines()[-2]) == (stream_is_modern, stream_is_modern)
    assert error["code"] == ("job_not_found" if errors_are_modern else "JOB_NOT_FOUND")


async def test_a_path_that_only_begins_like_the_old_one_is_not_it() -> None:
    house = House()
    answer = await house.ask("GET", "/v1/inferencex/stream", headers={"Accept": "text/event-stream"})
    assert (answer.status_code, (await answer.get_json())["code"]) == (404, "not_found")


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
        house.access.authenticate(None).principal, None, WorkerCheck().parse({}, house.gateway.limits, WrongFields())
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
