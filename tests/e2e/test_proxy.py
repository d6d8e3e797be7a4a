"""Everything works through a real nginx with worker/deploy/nginx.conf: TLS, HTTP/2, streams, names, cuts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.client import Reading, Socket, counting, expected_count, http, post_job, read_sse, sse
from tests.support.nginx import NAME, Nginx, needs_nginx, nginx
from tests.support.server import Server, serving

pytestmark = needs_nginx

KEY = "some-long-secret"
BEARER = {"Authorization": f"Bearer {KEY}"}
CROWD = 200
ESTABLISHED = "01"
LAST = 290


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker that is started as worker/docs/operating.md says, but for a heartbeat every half second."""
    flags = ("--hosts-allowed", NAME, "--heartbeat-s", "0.5")
    with serving(*flags, env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx in front of it, which gives a silent stream up after four heartbeats, as with the defaults of both."""
    with nginx(
        server, tmp_path_factory.mktemp("nginx"), {"proxy_read_timeout 60s": "proxy_read_timeout 2s"}
    ) as running:
        yield running


async def test_a_socket_streams(proxy: Nginx) -> None:
    async with Socket(proxy.worker, **proxy.to_socket(**BEARER)) as socket:
        job_id = await socket.create(**counting(1, LAST))
        reading = socket.readings[job_id]
        await socket.until(lambda: len(reading.tokens) > 2)
        # Had the proxy buffered the stream, the job would have ended by now.
        await socket.send("cancel", job_id=job_id)
        await socket.finish()
    assert reading.end["status"] == "cancelled"


async def test_events_stream_over_http2(proxy: Nginx) -> None:
    async with http(proxy.worker, **proxy.to_http(**BEARER)) as client:
        job_id = await post_job(client, **counting(1, LAST))
        reading = Reading()
        async with sse(client, job_id) as frames:
            async for frame in frames:
                reading.take(frame)
                if len(reading.tokens) == 3:
                    answer = await client.delete(f"/v1/jobs/{job_id}")
    assert answer.http_version == "HTTP/2"
    assert reading.end["status"] == "cancelled"


async def test_a_quiet_stream_is_not_given_up(proxy: Nginx, server: Server) -> None:
    """The engine stands still for longer than the proxy tolerates silence."""
    async with (
        Socket(proxy.worker, **proxy.to_socket(**BEARER)) as socket,
        http(proxy.worker, **proxy.to_http(**BEARER)) as client,
    ):
        job_id = await socket.create(**counting(1, LAST))
        async with asyncio.TaskGroup() as tasks:
            followed = tasks.create_task(read_sse(client, job_id))
            await socket.until(lambda: bool(socket.readings[job_id].tokens))
            with server.frozen_engine():
                await asyncio.sleep(3)
            await socket.finish()
    assert followed.result().text() == socket.readings[job_id].text() == expected_count(1, LAST)


async def test_a_reload_cuts_nobody(proxy: Nginx) -> None:
    async with (
        Socket(proxy.worker, **proxy.to_socket(**BEARER)) as socket,
        http(proxy.worker, **proxy.to_http(http2=False, **BEARER)) as client,
    ):
        job_id = await socket.create(**counting(1, LAST))
        async with sse(client, job_id) as frames:
            reading = Reading()
            reading.take(await anext(frames))
            await asyncio.to_thread(proxy.reload)
            async for frame in frames:
                reading.take(frame)
        await socket.finish()
    assert reading.text() == socket.readings[job_id].text() == expected_count(1, LAST)


async def test_after_a_restart_readers_resume(proxy: Nginx) -> None:
    async with Socket(proxy.worker, **proxy.to_socket(**BEARER)) as socket:
        job_id = await socket.create(**counting(1, LAST))
        reading = socket.readings[job_id]
        await socket.until(lambda: len(reading.tokens) > 2)
        await asyncio.to_thread(proxy.restart)
        with pytest.raises(ConnectionClosed):
            while True:
                await socket.receive()
    async with Socket(proxy.worker, **proxy.to_socket(**BEARER)) as socket:
        await socket.subscribe(job_id, reading, after=reading.cursor)
        await socket.finish()
    assert reading.text() == expected_count(1, LAST)


async def test_names_are_checked_as_they_are_outside(proxy: Nginx) -> None:
    own, foreign = {"Origin": proxy.origin}, {"Origin": "https://page.example"}
    async with http(proxy.worker, **proxy.to_http(**BEARER)) as client:
        for headers, status in ((own, 200), (foreign, 403), ({"Host": "other.example"}, 403)):
            assert (await client.get("/v1/jobs", headers=headers)).status_code == status
        answer = await client.post("/v1/tokens", json={"cookie": True}, headers=own)
    assert "; Secure;" in answer.headers["set-cookie"]
    cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
    async with Socket(proxy.worker, **proxy.to_socket(**cookie, **own)) as socket:
        await socket.run(**counting(1, 5))
    async with connect(proxy.worker.ws_url, proxy=None, **proxy.to_socket(**BEARER, **foreign)) as refused:
        await refused.wait_closed()
    assert refused.close_code == 4403


async def test_what_is_given_out_is_good_outside(proxy: Nginx) -> None:
    """Addresses have no host, so they are valid under every name."""
    async with http(proxy.worker, **proxy.to_http(**BEARER)) as client:
        answer = await client.post("/v1/jobs", json=counting(1, 9), headers={"Accept": "application/json"})
    addresses = answer.json()
    assert addresses["ws_url"] == "/v1/ws"
    async with http(proxy.worker, **proxy.to_http()) as client:
        shared = await client.get(addresses["sse_url"])
    assert shared.status_code == 200
    assert '"type":"end"' in shared.text


@pytest.mark.parametrize(("size", "status"), [(1_000_000, 200), (1_100_000, 413)])
async def test_large_prompts(proxy: Nginx, size: int, status: int) -> None:
    """nginx' limit is the worker's: 1 MiB."""
    body = {"prompt": "a" * size, "max_tokens": 1}
    async with http(proxy.worker, **proxy.to_http(http2=False, **BEARER)) as client:
        answer = await client.post("/v1/jobs", json=body, headers={"Accept": "application/json"})
    assert answer.status_code == status


async def test_a_crowd_of_sockets(proxy: Nginx) -> None:
    async def one() -> str:
        async with Socket(proxy.worker, **proxy.to_socket(**BEARER)) as socket:
            return (await socket.run(**counting(1, 20))).text()

    assert set(await asyncio.gather(*(one() for _ in range(CROWD)))) == {expected_count(1, 20)}


def _to_worker(server: Server) -> set[int]:
    """The ports from which somebody is connected to the worker."""
    rows = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [(local, remote) for local, remote, state in rows if state == ESTABLISHED]
    ports = [tuple(int(end.rpartition(":")[2], 16) for end in pair) for pair in ends]
    return {ours for ours, theirs in ports if theirs == server.port}


async def test_a_handshake_may_follow_a_call_on_a_connection_that_the_proxy_keeps(tmp_path: Path) -> None:
    kept = {"upstream jobwire {": "upstream jobwire { keepalive 16;", '"" close;': '"" "";'}
    flags = ("--hosts-allowed", NAME)
    with serving(*flags, env={"JOBWIRE_API_KEY": KEY}) as server, nginx(server, tmp_path, kept) as proxy:
        async with http(proxy.worker, **proxy.to_http(**BEARER)) as client:
            for _ in range(3):
                assert (await client.get("/health")).status_code == 200
        (port,) = _to_worker(server)
        async with Socket(proxy.worker, **proxy.to_socket(**BEARER)) as socket:
            assert (await socket.run(**counting(1, 9))).text() == expected_count(1, 9)
            assert _to_worker(server) == {port}
