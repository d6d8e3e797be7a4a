"""What is refused: half characters in bodies and paths, how refusals are counted, and no key in any answer."""

from __future__ import annotations

import json

import pytest

from tests.transports.keys import ANN, JSON, KEYS, House
from worker import errors

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"
PATHS = ["/v1/jobs", f"/v1/jobs/{ID}", f"/v1/jobs/{ID}/stream", "/v1/inference", "/health", "/v1/ready"]


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
