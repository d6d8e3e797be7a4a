"""Keys: fixed ones, functions for them, refused and expired ones."""

from __future__ import annotations

import asyncio

import pytest
from jobwire_client import ConnectionFailed, Refused, connect
from scripted import Peer, scripted_http, scripted_worker
from steps import HELLO, ID, QUICK, answers, created, end, go_on_after_a, in_loop, silent, sse, streams, token


class Keys:
    """A function for keys that counts: key-1, key-2 and so on."""

    def __init__(self, fail_at: int = 0) -> None:
        self.asked = 0
        self._fail_at = fail_at

    def __call__(self) -> str:
        self.asked += 1
        if self.asked == self._fail_at:
            raise RuntimeError("the shop is closed")
        return f"key-{self.asked}"

    async def later(self) -> str:
        await asyncio.sleep(0)
        return self()


@in_loop
async def test_a_refused_key_raises() -> None:
    async def script(peer: Peer) -> None:
        await peer.socket.close(4401, "Unknown key")

    # The hello came before the close, so the first wait meets it.
    async with scripted_worker(script) as worker, connect(worker.url, token="wrong") as jw:
        with pytest.raises(ConnectionFailed, match="Unknown key"):
            await jw.run("Hi").text()


@pytest.mark.parametrize("is_async", [False, True])
@in_loop
async def test_another_key_is_sent_before_the_first_expires(is_async: bool) -> None:
    renewed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        assert [(await peer.receive("auth"))["token"] for _ in range(2)] == ["key-2", "key-3"]
        renewed.set()
        await peer.send(token(1, "a"), end(2))
        await peer.wait_closed()

    keys = Keys()
    source = keys.later if is_async else keys
    async with scripted_worker(script, hello={"expires_in": 0.05}) as worker, connect(worker.url, source) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "a"
        await renewed.wait()
    assert worker.connections == 1
    assert worker.headers[0]["Authorization"] == "Bearer key-1"


@in_loop
async def test_a_function_that_fails_for_now_is_asked_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        assert (await peer.receive("auth"))["token"] == "key-3"
        await peer.send(end(1))
        await peer.wait_closed()

    async with (
        scripted_worker(script, hello={"expires_in": 0.05}) as worker,
        connect(worker.url, Keys(fail_at=2)) as jw,
    ):
        assert await jw.run("Hi", job_id=ID).text() == ""


@in_loop
async def test_a_function_that_fails_at_first_is_said() -> None:
    async with scripted_worker(silent) as worker:
        with pytest.raises(ConnectionFailed, match="the shop is closed"):
            await connect(worker.url, Keys(fail_at=1)).__aenter__()
    assert worker.connections == 0


@in_loop
async def test_a_fixed_key_is_never_sent_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        with pytest.raises(TimeoutError):  # many times what is left of its life
            await asyncio.wait_for(peer.receive("auth"), 0.2)
        await peer.send(end(1))
        await peer.wait_closed()

    async with scripted_worker(script, hello={"expires_in": 0.01}) as worker, connect(worker.url, "key") as jw:
        assert await jw.run("Hi", job_id=ID).text() == ""


@in_loop
async def test_an_expired_key_is_replaced_and_the_job_goes_on() -> None:
    async def expires(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"))
        await peer.socket.close(4401, "expired")

    async with scripted_worker(expires, go_on_after_a) as worker, connect(worker.url, Keys(), **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"
    assert [headers["Authorization"] for headers in worker.headers] == ["Bearer key-1", "Bearer key-2"]


@in_loop
async def test_a_key_that_is_refused_twice_in_a_row_is_wrong() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.socket.close(4401, "unknown key")

    keys = Keys()
    async with scripted_worker(refuse, greets=False) as worker:
        with pytest.raises(ConnectionFailed, match="unknown key") as failed:
            await connect(worker.url, keys).__aenter__()
        assert failed.value.code == "unauthorized"
    assert (keys.asked, worker.connections) == (2, 2)


@in_loop
async def test_a_key_that_is_refused_twice_in_a_row_is_wrong_after_a_cut_too() -> None:
    async def first(peer: Peer) -> None:
        await peer.send(HELLO)
        await peer.accept()
        await peer.cut()

    async def refuse(peer: Peer) -> None:
        await peer.socket.close(4401, "unknown key")

    keys = Keys()
    async with scripted_worker(first, refuse, greets=False) as worker, connect(worker.url, keys, **QUICK) as jw:
        with pytest.raises(ConnectionFailed, match="unknown key"):
            await jw.run("Hi", job_id=ID).text()
    assert (keys.asked, worker.connections) == (3, 3)


@in_loop
async def test_the_key_goes_as_a_frame_when_the_worker_asks_and_another_hello_follows() -> None:
    async def refuse(peer: Peer) -> None:
        assert (await peer.receive("auth"))["token"] == "key-1"
        await peer.socket.close(4401, "unknown key")

    async def script(peer: Peer) -> None:
        assert (await peer.receive("auth"))["token"] == "key-2"
        await peer.send({"type": "hello", "protocol": "jobwire.v1", "auth": "ok", "limits": {"max_window": 1}})
        assert (await peer.accept())["window"] == 1
        await peer.send(end(1))
        await peer.wait_closed()

    async with scripted_worker(refuse, script, hello={"auth": "required"}) as worker, connect(worker.url, Keys()) as jw:
        assert jw.hello["auth"] == "ok"
        assert await jw.run("Hi", job_id=ID, window=5).text() == ""


@in_loop
async def test_over_sse_every_request_has_the_key_of_the_moment() -> None:
    scripts = (created, answers(401, "unauthorized"), streams(sse(token(1, "a"), end(2))))
    async with (
        scripted_http(*scripts) as (url, exchanges),
        connect(url, Keys(), transport="sse", **QUICK) as jw,
    ):
        assert await jw.run("Hi", job_id=ID).text() == "a"
    assert [exchange.headers["authorization"] for exchange in exchanges] == [f"Bearer key-{n}" for n in (1, 2, 3)]


@in_loop
async def test_over_sse_a_key_that_is_refused_twice_in_a_row_is_wrong() -> None:
    refusal = answers(401, "unauthorized")
    async with scripted_http(refusal, refusal) as (url, _), connect(url, Keys(), transport="sse", **QUICK) as jw:
        with pytest.raises(Refused, match="unauthorized"):
            await jw.create("Hi")
