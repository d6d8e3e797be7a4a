"""What operators' routes tell strangers, and the stream of loading."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.transports.keys import ANN, House
from worker.brokers.base import EngineState
from worker.errors import ModelError

PATH = "/srv/models/secret.gguf"
FAILED = EngineState(phase="failed", error=ModelError(f"Cannot read {PATH}.").problem())
LOADING = EngineState(phase="loading")


@pytest.mark.parametrize("path", ["/health", "/v1/ready", "/v1/loading/progress"])
@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({}, False),
        ({"Authorization": "Bearer wrong"}, False),
        ({"Authorization": "nonsense"}, False),
        ({"Cookie": "jobwire=wrong"}, False),
        ({"Cookie": f"jobwire={ANN}"}, False),
        ({"Cookie": f"jobwire={ANN}", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Authorization": f"Bearer {ANN}"}, True),
    ],
)
async def test_why_loading_failed_is_for_those_with_a_key(
    house: House, path: str, headers: dict[str, str], known: bool
) -> None:
    house.stage.broker.state = FAILED
    answer = await house.ask("GET", path, headers=headers)
    text = (await answer.get_data()).decode()
    assert answer.status_code == (200 if "progress" in path else 503)
    assert (PATH in text) == known
    assert ("Ask with a key" in text) == (not known)


async def test_without_keys_everybody_may_know() -> None:
    house = House()
    house.stage.broker.state = FAILED
    assert PATH in (await (await house.ask("GET", "/health")).get_json())["message"]


async def _loading(house: House) -> Any:
    stream = house.client.request("/v1/loading/progress", headers={"Host": "localhost"})
    await stream.__aenter__()
    await stream.send_complete()
    assert json.loads((await stream.receive()).removeprefix(b"data: ")) == {"stage": "loading"}
    return stream


async def test_the_stream_of_loading_gives_a_sign_of_life() -> None:
    house = House(heartbeat_s=3)
    house.stage.broker.state = LOADING
    stream = await _loading(house)
    [connection] = house.gateway.connections
    for _ in range(2):
        house.stage.clock.advance(2999)
        connection.tick(house.stage.clock.monotonic_ms())
        house.stage.clock.advance(1)
        connection.tick(house.stage.clock.monotonic_ms())
        assert await stream.receive() == b": hb\n\n"
    house.stage.broker.state = EngineState(phase="ready")
    for wake in tuple(house.gateway.state_wakers):
        wake()
    assert await stream.receive() == b'data: {"stage":"ready"}\n\n'
    assert await stream.receive() == b"data: [DONE]\n\n"
    await stream.disconnect()
