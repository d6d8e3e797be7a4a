"""Who may come in: keys, hosts, origins, versions. A refusal can be read by its client, a page included."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.e2e.client import Socket, counting, expected_count, http, post_stream
from tests.e2e.raw import exchange, request
from tests.support.server import Server, serving

KEY = "correct-horse-battery-staple"
JSON = {"Accept": "application/json", "Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A worker with a key, a friendly origin and a name of its own."""
    flags = ("--origins-allowed", "https://page.example", "--hosts-allowed", "worker.example")
    with serving(*flags, env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


async def _close_code(server: Server, **options: Any) -> int | None:
    """Connect and return the close code, or None if the worker says hello."""
    async with connect(server.ws_url, proxy=None, **options) as socket:
        try:
            assert json.loads(await socket.recv())["type"] == "hello"
        except ConnectionClosed:
            return socket.close_code
    return None


def _encoded(key: str) -> Subprotocol:
    return Subprotocol("bearer." + base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode())


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x"])
async def test_without_the_key_nothing_is_answered(locked: Server, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/0123456789abcdef"),
        ("GET", "/v1/jobs/0123456789abcdef/stream"),
        ("DELETE", "/v1/jobs/0123456789abcdef"),
        ("POST", "/v1/inference"),
        ("GET", "/v1/inference/0123456789abcdef/stream"),
    ]:
        body = b'{"prompt":"Hi"}' if method == "POST" else b""
        answer = await exchange(locked, request(method, path, {**JSON, **headers}, body))
        problem = json.loads(answer.body)
        assert answer.status == problem["status"] == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.body.decode()
        if not path.startswith("/v1/inference"):
            assert problem["code"] == "unauthorized"
    # Without any, it may come in the first frame.
    assert await _close_code(locked, additional_headers=headers) == (4401 if headers else None)


async def test_the_key_opens_everything(locked: Server) -> None:
    async with http(locked, headers=BEARER) as client:
        assert (await post_stream(client, **counting())).text() == expected_count(1, 60)
    async with Socket(locked, additional_headers=BEARER) as socket:
        assert (await socket.run(**counting())).text() == expected_count(1, 60)


async def test_a_page_sends_the_key_as_subprotocol(locked: Server) -> None:
    offered = [Subprotocol("jobwire.v1"), _encoded(KEY)]
    async with Socket(locked, subprotocols=offered) as socket:
        # The key is never echoed.
        assert socket.raw.subprotocol == "jobwire.v1"
        assert (await socket.run(**counting())).text() == expected_count(1, 60)
    assert await _close_code(locked, subprotocols=[Subprotocol("jobwire.v1"), _encoded("wrong")]) == 4401
    assert await _close_code(locked, subprotocols=[Subprotocol("jobwire.v1"), Subprotocol("bearer.!!!")]) == 4401
    assert await _close_code(locked, subprotocols=[Subprotocol("jobwire.v1")]) is None


async def test_the_key_is_not_in_the_output(locked: Server) -> None:
    assert KEY not in "\n".join(locked.output)
    assert "Bearer" in "\n".join(locked.output)


async def test_health_needs_no_key(locked: Server) -> None:
    async with http(locked) as client:
        for path in ("/", "/health", "/v1/ready"):
            assert (await client.get(path)).status_code == 200


async def test_the_key_is_no_use_in_a_query(locked: Server) -> None:
    async with http(locked) as client:
        assert (await client.get("/v1/jobs", params={"api_key": KEY, "token": KEY})).status_code == 401


# ---- hosts and origins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "ok"),
    [
        ("localhost", True),
        ("LOCALHOST:1234", True),
        ("127.0.0.1", True),
        ("[::1]:80", True),
        ("10.0.0.7:8080", True),
        ("[2001:db8::7]", True),
        ("10.0.0.7.evil.example", False),
        ("worker.example", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example:localhost", False),
        ("", False),
        ("[", False),
    ],
)
async def test_the_host_must_be_ours(locked: Server, host: str, ok: bool) -> None:
    answer = await exchange(locked, request("GET", "/v1/jobs", {**JSON, **BEARER, "Host": host}))
    assert answer.status == (200 if ok else 403)
    if not ok:
        assert json.loads(answer.body)["code"] == "forbidden"


@pytest.mark.parametrize(
    ("origin", "ok"),
    [
        ("http://{host}", True),
        ("https://page.example", True),
        ("https://evil.example", False),
        ("https://page.example.evil.example", False),
        ("http://{host}.evil.example", False),
        ("http://localhost:1", False),
        ("null", False),
        ("", False),
    ],
)
async def test_a_page_must_be_ours_or_listed(locked: Server, origin: str, ok: bool) -> None:
    host = f"127.0.0.1:{locked.port}"
    headers = {"Origin": origin.format(host=host), **BEARER}
    answer = await exchange(locked, request("GET", "/v1/jobs", {**JSON, **headers, "Host": host}))
    assert answer.status == (200 if ok else 403)
    assert await _close_code(locked, additional_headers=headers) == (None if ok else 4403)


async def test_origin_is_checked_without_a_key_too(server: Server) -> None:
    """A page on the internet must not reach a worker on the reader's own machine."""
    for path in ("/v1/jobs", "/v1/inference"):
        sent = request("POST", path, {**JSON, "Origin": "https://evil.example"}, b'{"prompt":"Hi"}')
        assert (await exchange(server, sent)).status == 403
    assert await _close_code(server, additional_headers={"Origin": "https://evil.example"}) == 4403
    assert await _close_code(server) is None


# ---- handshake -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "code", "chosen"),
    [
        ([], None, None),
        (["jobwire.v1"], None, "jobwire.v1"),
        (["jobwire.v9", "jobwire.v1"], None, "jobwire.v1"),
        (["something.else"], None, None),
        (["jobwire.v9"], 4406, "jobwire.v9"),
    ],
)
async def test_versions(server: Server, offered: list[str], code: int | None, chosen: str | None) -> None:
    subprotocols = [Subprotocol(name) for name in offered] or None
    assert await _close_code(server, subprotocols=subprotocols) == code
    async with connect(server.ws_url, proxy=None, subprotocols=subprotocols) as socket:
        assert socket.subprotocol == chosen


async def test_compression_is_not_agreed_upon(server: Server) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
    }
    answer = await exchange(server, request("GET", "/v1/ws", upgrade))
    assert answer.status == 101
    assert "sec-websocket-extensions" not in answer.headers


# ---- what refuses to start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "worker.example"])
def test_an_open_bind_without_a_key_refuses_to_start(host: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "worker", "serve", "--host", host, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "JOBWIRE_API_KEY" in result.stderr
    assert host in result.stderr


def test_an_open_bind_with_a_short_key_refuses_to_start() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "worker", "serve", "--host", "0.0.0.0", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "JOBWIRE_API_KEY": "fifteen-letters"},
    )
    assert (result.returncode, "fifteen" in result.stderr) == (2, False)
    assert "openssl rand -hex 16" in result.stderr


def test_what_the_operator_should_change_is_logged_at_the_start(tmp_path: Path) -> None:
    """Each as a warning, though the worker starts: a short key, an old name, files that others may read."""
    keys, settings = tmp_path / "keys.toml", tmp_path / "jobwire.toml"
    keys.write_text("", encoding="utf-8")
    settings.write_text(f'api_key = "short"\nkeys_file = "{keys}"\n', encoding="utf-8")
    for path in (keys, settings):
        path.chmod(0o644)
    env = {"JOBWIRE_CONFIG": str(settings), "JOBWIRE_JOBS_PER_PRINCIPAL_MAX": "9"}
    with serving(env=env, ready=False) as server:
        assert server.get("/health").status_code == 200
        warnings = [line for line in server.output if '"level": "warning"' in line]
    for part in ("openssl rand", "jobs_per_account_max", f"chmod 600 {keys}", f"chmod 600 {settings}"):
        assert len([line for line in warnings if part in line]) == 1, (part, server.output)


def test_an_open_bind_with_a_key_starts() -> None:
    with serving("--host", "0.0.0.0", env={"JOBWIRE_API_KEY": KEY}, ready=False) as server:
        assert server.get("/health").status_code == 200
        assert server.get("/v1/jobs").status_code == 401


async def test_old_clients_read_what_is_wrong_with_their_key(locked: Server) -> None:
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "MISSING_API_KEY"),
        ({"Authorization": "Bearer wrong"}, "INVALID_API_KEY"),
    ]
    for headers, code in cases:
        sent = request("POST", "/v1/jobs", {**JSON, "Accept": "*/*", **headers}, b'{"prompt":"Hi"}')
        answer = await exchange(locked, sent)
        assert answer.status == 401
        assert json.loads(answer.body)["error"]["code"] == code
