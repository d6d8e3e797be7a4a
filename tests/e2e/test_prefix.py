"""Below a path of a proxy: every address that the worker gives out leads back to it, whoever takes the path away."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.clients.conftest import CLIENTS
from tests.e2e.client import Reading, Socket, counting, expected_count, http, sse_frames
from tests.support.nginx import NAME, Nginx, needs_nginx, nginx
from tests.support.node import node
from tests.support.server import Server, serving

sys.path.insert(0, str(CLIENTS / "python"))

from jobwire_client import connect as client_connect

KEY = "some-long-secret"
BEARER = {"Authorization": f"Bearer {KEY}"}
JSON, EVENTS = {"Accept": "application/json"}, {"Accept": "text/event-stream"}
TOLD = {"X-Forwarded-Prefix": "/llm"}
LAST = 290


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker that is told by a header."""
    with serving("--hosts-allowed", NAME, env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def owner() -> Iterator[Server]:
    """A worker that is told by a setting."""
    with serving("--path-prefix", "/llm/", "--hosts-allowed", NAME, env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(server, tmp_path_factory.mktemp("nginx")) as running:
        yield running


# ---- without a proxy: what comes, and what goes out ------------------------------------------------------------------


def addresses(server: Server, below: str, **headers: str) -> dict[str, Any]:
    """Return all addresses that the worker gives out."""
    fields = {**JSON, **BEARER, **headers}
    created = server.post(f"{below}/v1/jobs", {"operation": "worker_check"}, headers=fields)
    job = created.json()
    old = server.post(f"{below}/v1/inference", {"prompt": "Hi", "max_tokens": 1}, headers=BEARER | headers)
    cookie = server.post(f"{below}/v1/tokens", {"cookie": True}, headers=fields).headers["set-cookie"]
    openapi = server.get(f"{below}/openapi.json", headers=headers).json()
    asyncapi = server.get(f"{below}/asyncapi.json", headers=headers).json()
    return {
        "sse_url": job["sse_url"].partition("/v1/")[0],
        "ws_url": job["ws_url"],
        "shown": server.get(f"{below}/v1/jobs/{job['job_id']}", headers=fields).json()["sse_url"].partition("/v1/")[0],
        "legacy": old.json()["sse_url"].partition("/v1/")[0],
        "cookie": next(part for part in cookie.split("; ") if part.startswith("Path=")),
        "server": openapi["servers"][0]["url"],
        "docs": openapi["externalDocs"]["url"],
        "pathname": asyncapi["servers"]["worker"].get("pathname"),
        "missing": "/llm/docs lists" in server.get(f"{below}/nothing", headers=fields).json()["detail"],
        "index": "below /llm here" in server.get(f"{below}/", headers=headers).text,
    }


WITH = {
    "sse_url": "/llm", "ws_url": "/llm/v1/ws", "shown": "/llm", "legacy": "/llm", "cookie": "Path=/llm",
    "server": "/llm", "docs": "/llm/docs/ws", "pathname": "/llm", "missing": True, "index": True,
}  # fmt: skip
WITHOUT = {
    "sse_url": "", "ws_url": "/v1/ws", "shown": "", "legacy": "", "cookie": "Path=/",
    "server": "/", "docs": "/docs/ws", "pathname": None, "missing": False, "index": False,
}  # fmt: skip


@pytest.mark.parametrize("below", ["", "/llm"])
def test_addresses_have_the_prefix_that_a_proxy_tells(server: Server, below: str) -> None:
    """Also when it has left it in the path."""
    assert addresses(server, below, **TOLD) == WITH


@pytest.mark.parametrize("below", ["", "/llm"])
def test_addresses_have_the_prefix_of_the_setting(owner: Server, below: str) -> None:
    assert addresses(owner, below) == WITH


@pytest.mark.parametrize("value", ["", "//evil.example", "/a/../b", "https://evil.example/x", "/v1"])
def test_without_a_sound_one_there_is_none(server: Server, value: str) -> None:
    assert addresses(server, "", **{"X-Forwarded-Prefix": value}) == WITHOUT


def test_a_stranger_tells_nothing() -> None:
    with serving("--proxies-trusted", "10.0.0.0/8", env={"JOBWIRE_API_KEY": KEY}) as server:
        assert addresses(server, "", **TOLD) == WITHOUT
        assert server.get("/llm/health", headers=TOLD).status_code == 404


@pytest.mark.parametrize("headers", [TOLD, {}])
def test_the_folder_itself_leads_to_the_page(server: Server, owner: Server, headers: dict[str, str]) -> None:
    """Links of the page are relative: without the slash they would lead beside it."""
    answer = (server if headers else owner).get("/llm?x=1", headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (308, "/llm/?x=1")


def test_a_path_that_only_begins_like_it_is_another(owner: Server) -> None:
    assert owner.get("/llmx/health").status_code == 404
    assert owner.get("/llm/llm/health").status_code == 404


@pytest.mark.parametrize("below", ["", "/llm"])
async def test_the_prefix_belongs_to_the_connection(server: Server, below: str) -> None:
    """One worker, two ways in: each socket gets addresses that are good where it came from."""
    job_id = ""
    for headers, expected in ((TOLD, "/llm/v1/jobs/"), ({}, "/v1/jobs/")):
        way = copy.copy(server)
        way.ws_url = f"ws://127.0.0.1:{server.port}{below if headers else ''}/v1/ws"
        async with Socket(way, additional_headers=BEARER | headers) as socket:
            if not job_id:
                job_id = await socket.create(**counting(1, 5))
                await socket.finish()
            accepted = await socket.ask("cancel", job_id=job_id)
            assert accepted["sse_url"].startswith(expected)


# ---- through nginx ---------------------------------------------------------------------------------------------------


@needs_nginx
async def test_a_job_through_its_addresses(proxy: Nginx) -> None:
    """Created by POST, followed over its `sse_url`, cut, resumed over its `ws_url`."""
    async with http(proxy.worker, **proxy.to_http(**BEARER)) as client:
        answer = await client.post("/llm/v1/jobs", json=counting(1, LAST), headers=JSON)
        job = answer.json()
        reading = Reading()
        async with client.stream("GET", job["sse_url"], headers=EVENTS) as stream:
            async for frame in sse_frames(stream):
                reading.take(frame)
                if len(reading.tokens) == 3:
                    break
    below = proxy.below("/llm")
    below.ws_url = f"wss://{NAME}:{proxy.port}{job['ws_url']}"
    async with Socket(below, **proxy.to_socket(**BEARER)) as socket:
        await socket.subscribe(job["job_id"], reading, after=reading.cursor)
        await socket.finish()
    assert reading.text() == expected_count(1, LAST)


@needs_nginx
async def test_a_link_alone_is_enough(proxy: Nginx) -> None:
    async with Socket(proxy.below("/llm"), **proxy.to_socket(**BEARER)) as socket:
        accepted = await socket.ask("create", **counting(1, 9))
    async with http(proxy.worker, **proxy.to_http()) as client:
        shared = await client.get(accepted["sse_url"], headers={"Accept": "text/event-stream"})
        assert shared.status_code == 200
        assert '"type":"end"' in shared.text


@needs_nginx
async def test_what_a_client_sends_through_the_proxy_is_not_used(proxy: Nginx) -> None:
    forged = {"X-Forwarded-Prefix": "/forged"}
    async with http(proxy.worker, **proxy.to_http(**BEARER, **forged)) as client:
        for below in ("", "/llm"):
            answer = await client.post(f"{below}/v1/jobs", json={"operation": "worker_check"}, headers=JSON)
            assert answer.json()["sse_url"].startswith(f"{below}/v1/jobs/")


@needs_nginx
@pytest.mark.parametrize("stripped", [True, False])
async def test_the_setting_alone(owner: Server, tmp_path_factory: pytest.TempPathFactory, stripped: bool) -> None:
    """A proxy that says nothing, whether it takes the path away or not."""
    edits = {"set $prefix /llm;": ""} | (
        {} if stripped else {"proxy_pass http://jobwire/;": "proxy_pass http://jobwire;"}
    )
    with nginx(owner, tmp_path_factory.mktemp("quiet"), edits) as proxy:
        async with http(proxy.worker, **proxy.to_http(**BEARER)) as client:
            created = await client.post("/llm/v1/jobs", json=counting(1, 20), headers=JSON)
            reading = Reading()
            async with client.stream("GET", created.json()["sse_url"], headers=EVENTS) as stream:
                async for frame in sse_frames(stream):
                    reading.take(frame)
    assert reading.text() == expected_count(1, 20)


@needs_nginx
@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_the_javascript_client(proxy: Nginx, server: Server, transport: str) -> None:
    env = {"JOBWIRE_URL": f"https://127.0.0.1:{proxy.port}/llm", "JOBWIRE_TOKEN": KEY, "JOBWIRE_TRANSPORT": transport}
    env |= {"NODE_EXTRA_CA_CERTS": str(proxy.certificate), "JOBWIRE_DIRECT_URL": server.url}
    shown = node("--test", "--test-reporter=tap", "worker.test.js", cwd=CLIENTS / "javascript" / "tests", **env)
    assert "\n# fail 0\n" in shown


@needs_nginx
@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_the_python_client(proxy: Nginx, transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.certificate))
    url = f"https://127.0.0.1:{proxy.port}/llm/"
    async with client_connect(url, KEY, transport=transport) as client:
        created = await client.create("Count from 1 to 5.", max_tokens=5)
        text = await created.text()
    async with client_connect(url, KEY, transport=transport) as client:
        # Over event streams no answer has told it the address of this one.
        watched = client.subscribe(created.id)
        assert await watched.text() == text
    async with http(proxy.worker, **proxy.to_http(**BEARER, **EVENTS)) as client:
        for job in (created, watched):
            assert job.accepted["sse_url"].startswith("/llm/v1/jobs/")
            answer = await client.get(httpx.URL(url).join(job.accepted["sse_url"]))
            assert json.loads(answer.text.split("data: ")[-1])["status"] == "completed"
