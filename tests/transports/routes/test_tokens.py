"""`POST /v1/tokens`: who gets a token, for whom and for how long, and as a cookie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.scripted import WALL_START_MS
from tests.transports.keys import ANN, KEYS, House, create, refused


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
