"""Opening and closing a client: addresses, the hello, what carries the jobs, and closing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from jobwire_client import ConnectionFailed, connect
from scripted import Frame, Peer, scripted_http, scripted_worker
from steps import ID, answers, created, end, in_loop, serves, silent, sse, streams, token


@in_loop
async def test_nothing_listens() -> None:
    async with scripted_worker(silent) as worker:
        url = worker.url
    with pytest.raises(ConnectionFailed) as failed:
        await connect(url).__aenter__()
    assert failed.value.code == "connection_failed"
    assert isinstance(failed.value.__cause__, OSError)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://worker", ""])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="Expected a URL"):
        connect(url)


@in_loop
async def test_all_forms_of_the_url_reach_the_same_socket() -> None:
    async with scripted_worker(silent) as worker:
        ws_url = worker.url.replace("http", "ws")
        for url in (worker.url, worker.url + "/", ws_url, ws_url + "/v1/ws"):
            async with connect(url) as jw:
                assert jw.hello["protocol"] == "jobwire.v1"


def test_an_unknown_transport_is_refused() -> None:
    pigeon: Any = "pigeon"
    with pytest.raises(ValueError, match="pigeon"):
        connect("http://127.0.0.1:1", transport=pigeon)


@pytest.mark.parametrize("first", [{"type": "error", "error": {"code": "bad_frame"}}, {}], ids=str)
@in_loop
async def test_who_does_not_say_hello_is_no_worker(first: Frame) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(first)
        await peer.wait_closed()

    async with scripted_worker(script, greets=False) as worker:
        with pytest.raises(ConnectionFailed, match="hello") as failed:
            await connect(worker.url).__aenter__()
    causes = [failed.value.__cause__]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
        assert len(causes) < 9, "a cause of itself"


@in_loop
async def test_a_client_that_was_never_opened_says_so() -> None:
    for transport in ("websocket", "sse"):
        options: Any = {"transport": transport}
        with pytest.raises(ConnectionFailed, match="async with") as failed:
            connect("http://127.0.0.1:1", **options).run("Hi")
        assert failed.value.code == "closed"


@pytest.mark.parametrize("transport", ["websocket", "sse"])
@in_loop
async def test_a_client_may_be_opened_again(transport: Any) -> None:
    script = serves(end(1))

    http = (created, streams(sse(end(1)))) * 2
    async with scripted_worker(script) as worker, scripted_http(*http) as (url, _):
        jw = connect(worker.url if transport == "websocket" else url, transport=transport)
        for _ in range(2):
            async with jw:
                assert await jw.run("Hi", job_id=ID).text() == ""


@in_loop
async def test_where_no_websocket_gets_through_it_is_sse() -> None:
    proxy, root = answers(403), answers(200)
    stream = streams(sse(token(1, "a"), end(2)))
    async with (
        scripted_http(proxy, root, created, stream) as (url, exchanges),
        connect(url) as jw,
    ):
        assert jw.transport == "sse"
        assert await jw.run("Hi", job_id=ID).text() == "a"
    assert [exchange.path for exchange in exchanges[:3]] == ["/v1/ws", "/", "/v1/jobs"]


@in_loop
async def test_a_worker_that_is_away_is_not_taken_for_such_a_proxy() -> None:
    async with scripted_http(answers(502), answers(502)) as (url, _):
        with pytest.raises(ConnectionFailed):
            await connect(url).__aenter__()


@in_loop
async def test_a_websocket_that_must_be_is_not_replaced() -> None:
    async with scripted_http(answers(403)) as (url, _):
        with pytest.raises(ConnectionFailed, match="http_403"):
            await connect(url, transport="websocket").__aenter__()


@in_loop
async def test_a_client_that_is_left_at_once_says_goodbye() -> None:
    async def script(peer: Peer) -> None:
        await peer.wait_closed()
        codes.append(peer.socket.close_code)
        done.set()

    codes: list[int | None] = []
    done = asyncio.Event()
    async with scripted_worker(script) as worker:
        async with connect(worker.url):
            pass
        await done.wait()
    assert codes == [1000]


@in_loop
async def test_closing_the_client_ends_every_wait() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.wait_closed()
        assert peer.socket.close_code == 1000

    async with scripted_worker(script) as worker:
        async with connect(worker.url) as jw:
            job = await jw.create("Hi", job_id=ID)
            reading = asyncio.create_task(job.text())
            await asyncio.sleep(0)
        with pytest.raises(ConnectionFailed) as closed:
            await reading
        assert closed.value.code == "closed"
        with pytest.raises(ConnectionFailed):
            await jw.create("Hi")
