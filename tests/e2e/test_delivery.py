"""How clients ask for delivery: windows, floors, keys in the first frame, and goodbyes that come in time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.client import (
    Frame,
    Reading,
    Socket,
    counting,
    expected_count,
    http,
    new_id,
    post_job,
    sse_frames,
)
from tests.support.server import Server, serving, wait_until

LAST = 100
KEY = "correct-horse-battery-staple"
AUTH_TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker as it comes."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A worker with a key, and little patience."""
    with serving("--auth-timeout-s", str(AUTH_TIMEOUT_S), env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


async def closing_code(socket: Socket) -> int | None:
    """Receive until the connection ends, and return why."""
    with pytest.raises(ConnectionClosed):
        while True:
            await socket.receive()
    return socket.raw.close_code


# ---- windows ---------------------------------------------------------------------------------------------------------


async def test_a_page_that_acks_slowly_gets_few_large_frames(server: Server) -> None:
    """`window: 1`, and an ack only after the engine has said fifty things more."""
    every = 50
    async with Socket(server) as witness, Socket(server) as page:
        with server.frozen_engine():
            job_id = await witness.create(**counting(1, LAST))
            told, read = witness.readings[job_id], await page.subscribe(job_id, window=1)
        while not read.ended:
            count = len(read.frames)
            await page.until(lambda count=count: len(read.frames) > count)  # type: ignore[misc]
            reached = told.number
            await witness.until(lambda reached=reached: told.ended or told.number >= reached + every)  # type: ignore[misc]
            # Nothing came meanwhile: the one frame of the window is on its way.
            assert (await page.ask("ping"))["type"] == "pong"
            assert len(read.frames) == count + 1
            await page.send("ack", job_id=job_id, cursor=read.cursor)
    assert read.text() == told.text() == expected_count(1, LAST)
    assert read.story() == told.story()
    events = sum(frame.get("n", 1) for frame in read.tokens)
    assert len(read.tokens) <= events / every + len(read.actions) + 2


async def test_a_page_that_acks_at_once_misses_nothing(server: Server) -> None:
    async with Socket(server) as page:
        job_id = await page.create(**counting(1, LAST, window=2))
        reading = page.readings[job_id]
        while not reading.ended:
            frame = await page.receive()
            await page.send("ack", job_id=job_id, cursor=frame["cursor"])
        # Acks of the end, and of what went before it, are no mistakes.
        assert (await page.ask("ping"))["type"] == "pong"
    assert reading.text() == expected_count(1, LAST)
    assert not page.errors


async def test_a_cancel_acts_although_the_window_is_full(server: Server) -> None:
    async with Socket(server) as page, Socket(server) as witness:
        job_id = await page.create(**counting(1, 300, window=1))
        reading = page.readings[job_id]
        await page.until(lambda: bool(reading.frames))
        told = await witness.subscribe(job_id)
        await witness.until(lambda: len(told.tokens) >= 5)
        assert (await page.ask("cancel", job_id=job_id))["state"] == "ended"
        await witness.finish(job_id)
        assert not reading.ended
        while not reading.ended:
            await page.send("ack", job_id=job_id, cursor=reading.cursor)
            await page.receive()
    assert reading.end == told.end
    assert reading.end["status"] == "cancelled"
    assert reading.text() == told.text()


async def test_a_window_is_kept_over_a_reconnect(server: Server) -> None:
    """The new connection begins with an empty window; nothing is lost and nothing comes twice."""
    reading = Reading()
    job_id = new_id()
    for received in (1, 2, 3, 1 << 30):
        async with Socket(server) as page:
            page.readings[job_id] = reading
            await page.ask("create", **counting(1, LAST, job_id=job_id, window=3, after=reading.cursor))
            count = len(reading.frames)
            while not reading.ended and len(reading.frames) < count + received:
                await page.receive()
                if received > 3:
                    await page.send("ack", job_id=job_id, cursor=reading.cursor)
            await page.cut()
    assert reading.text() == expected_count(1, LAST)
    assert reading.resets == 0


async def test_hello_tells_what_may_be_asked_for(server: Server) -> None:
    async with Socket(server) as socket:
        limits = socket.hello["limits"]
        assert {"window", "coalesce", "auth", "goaway"} <= set(socket.hello["features"])
        for name, most in (("window", limits["max_window"]), ("coalesce_ms", limits["max_coalesce_ms"])):
            assert most > 0
            reply = await socket.ask("create", **counting(1, 5, **{name: most + 1}))
            assert reply["error"]["errors"][0]["pointer"] == f"/{name}"
            await socket.create(**counting(1, 5, **{name: most}))


# ---- floors ----------------------------------------------------------------------------------------------------------

FLOOR_MS = 250


def _assert_merged(reading: Reading) -> None:
    """No more token frames than the floor allows in the time that the job took, besides those that narration let go."""
    assert reading.text() == expected_count(1, LAST)
    usage = reading.end["usage"]
    decode_ms = usage["total_ms"] - usage["ttft_ms"]
    assert len(reading.tokens) <= decode_ms / FLOOR_MS + len(reading.actions) + 3
    assert sum(frame.get("n", 1) for frame in reading.tokens) > len(reading.tokens)
    # The first one did not wait for others.
    assert reading.tokens[0].get("n", 1) == 1


async def test_a_floor_over_websocket(server: Server) -> None:
    async with Socket(server) as socket:
        _assert_merged(await socket.run(**counting(1, LAST, coalesce_ms=FLOOR_MS)))


async def test_a_floor_of_one_job_is_none_of_another(server: Server) -> None:
    async with Socket(server) as socket:
        with server.frozen_engine():
            slow = await socket.create(**counting(1, LAST, coalesce_ms=FLOOR_MS))
            quick = await socket.create(**counting(1, LAST))
        merged, single = await socket.finish(slow, quick)
    _assert_merged(merged)
    assert len(single.tokens) > len(merged.tokens)


async def test_a_floor_of_a_post(server: Server) -> None:
    body = counting(1, LAST, coalesce_ms=FLOOR_MS)
    async with http(server) as client:
        _assert_merged(await _read(client, "POST", "/v1/jobs", json=body))


async def test_a_floor_of_a_stream(server: Server) -> None:
    async with http(server) as client:
        with server.frozen_engine():
            job_id = await post_job(client, **counting(1, LAST))
            reading = asyncio.create_task(_read(client, "GET", f"/v1/jobs/{job_id}/stream?coalesce_ms={FLOOR_MS}"))
            await asyncio.to_thread(wait_until, "the reader", lambda: len(server.get("/v1/jobs").json()["jobs"]) > 0)
        _assert_merged(await reading)


async def test_what_is_held_back_comes_in_its_time(server: Server) -> None:
    """Although nothing more happens to the job."""
    async with Socket(server) as witness, Socket(server) as page, http(server) as client:
        job_id = await witness.create(**counting(1, 300))
        told, streamed = witness.readings[job_id], Reading()
        read = await page.subscribe(job_id, coalesce_ms=FLOOR_MS)
        path, headers = f"/v1/jobs/{job_id}/stream?coalesce_ms={FLOOR_MS}", {"Accept": "text/event-stream"}
        async with client.stream("GET", path, headers=headers) as response:
            await witness.until(lambda: len(told.tokens) >= 20)
            with server.frozen_engine():
                await witness.ask("ping")
                reached = told.number
                await page.until(lambda: read.number >= reached)
                async for frame in sse_frames(response):
                    streamed.take(frame)
                    if streamed.number >= reached:
                        break
        await witness.ask("cancel", job_id=job_id)


async def _read(client: httpx.AsyncClient, method: str, path: str, json: Frame | None = None) -> Reading:
    reading = Reading()
    async with client.stream(method, path, json=json, headers={"Accept": "text/event-stream"}) as response:
        async for frame in sse_frames(response):
            reading.take(frame)
    return reading


async def test_what_an_event_stream_cannot_do_is_refused(server: Server) -> None:
    headers = {"Accept": "text/event-stream"}
    async with http(server) as client:
        job_id = await post_job(client, **counting(1, 5))
        path = f"/v1/jobs/{job_id}/stream"
        for answer, pointer in (
            (await client.post("/v1/jobs", json=counting(window=1), headers=headers), "/window"),
            (await client.post("/v1/jobs", json=counting(coalesce_ms=501), headers=headers), "/coalesce_ms"),
            (await client.get(path, params={"coalesce_ms": "501"}, headers=headers), "/coalesce_ms"),
            (await client.get(path, params={"coalesce_ms": "soon"}, headers=headers), "/coalesce_ms"),
        ):
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["pointer"] == pointer


# ---- keys in the first frame -----------------------------------------------------------------------------------------


async def test_a_page_may_send_its_key_as_the_first_frame(locked: Server) -> None:
    async with Socket(locked) as socket:
        assert socket.hello["auth"] == "required"
        refused = await socket.ask("create", **counting(1, 5))
        assert (refused["type"], refused["error"]["code"]) == ("error", "unauthorized")
        hello = await socket.ask("auth", token=KEY)
        assert (hello["type"], hello["auth"]) == ("hello", "ok")
        assert (await socket.run(**counting(1, 9))).text() == expected_count(1, 9)
        # Again, as before a key expires: silence is consent.
        await socket.send("auth", token=KEY)
        assert (await socket.ask("ping"))["type"] == "pong"


async def test_a_wrong_key_in_the_first_frame_closes(locked: Server) -> None:
    async with Socket(locked) as socket:
        await socket.send("auth", token=KEY + "x")
        assert await closing_code(socket) == 4401
        assert KEY not in (socket.raw.close_reason or "")


async def test_who_shows_no_key_in_time_is_sent_away(locked: Server) -> None:
    async with Socket(locked) as silent, Socket(locked) as known:
        await known.ask("auth", token=KEY)
        assert await closing_code(silent) == 4408
        assert (await known.ask("ping"))["type"] == "pong"


def _token(server: Server, ttl_s: int) -> str:
    answer = server.post("/v1/tokens", {"ttl_s": ttl_s}, headers={"Authorization": f"Bearer {KEY}"})
    token: str = answer.json()["token"]
    return token


async def test_a_token_expires_on_an_open_connection_unless_it_is_renewed(locked: Server) -> None:
    headers = {"Authorization": f"Bearer {_token(locked, 4)}"}
    async with Socket(locked, additional_headers=headers) as stays, Socket(locked) as leaves:
        assert 0 < stays.hello["expires_in"] <= 4
        hello = await leaves.ask("auth", token=_token(locked, 4))
        assert 0 < hello["expires_in"] <= 4
        await stays.send("auth", token=_token(locked, 60))
        assert await closing_code(leaves) == 4401
        assert (await stays.run(**counting(1, 9))).text() == expected_count(1, 9)
        refused = await stays.ask("auth", token="guess")
        assert refused["error"]["code"] == "unauthorized"


async def test_many_frames_before_the_key_are_abuse(locked: Server) -> None:
    async with Socket(locked) as socket:
        for _ in range(10):
            await socket.send("ping")
        assert await closing_code(socket) == 4400


# ---- goodbye ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_client_that_leaves_is_let_go(server: Server, code: int) -> None:
    """1000 when it has what it wanted, 1001 when its page goes away: the worker says the same."""
    async with Socket(server) as socket:
        await socket.run(**counting(1, 5))
        await socket.raw.close(code)
        assert socket.raw.protocol.close_rcvd is not None
        assert socket.raw.protocol.close_rcvd.code == code


async def test_a_drain_is_told_at_once_and_jobs_go_on() -> None:
    with serving() as server:
        async with Socket(server) as socket, Socket(server) as idle, http(server) as client:
            job_id = await socket.create(**counting(1, LAST))
            reading = socket.readings[job_id]
            await socket.until(lambda: bool(reading.tokens))
            with server.frozen_engine():
                streaming = asyncio.create_task(_read(client, "GET", f"/v1/jobs/{job_id}/stream"))
                server.process.send_signal(signal.SIGTERM)
                goodbyes = [await _goaway(socket), await _goaway(idle)]
                async with Socket(server) as late:
                    goodbyes.append(await _goaway(late))
                    assert (await late.ask("create", **counting()))["error"]["code"] == "draining"
            for goaway in goodbyes:
                assert goaway["reason"] == "shutdown"
                assert goaway["retry_ms"] > 0
            assert not reading.ended
            await socket.finish(job_id)
            assert reading.text() == expected_count(1, LAST)
            # A stream has nothing to say about it: it ends with its job. `_read` would refuse anything else.
            assert (await streaming).end == reading.end
            rest = [frame async for frame in _until_closed(socket)] + [frame async for frame in _until_closed(idle)]
            assert "goaway" not in {frame["type"] for frame in rest}
            assert {socket.raw.close_code, idle.raw.close_code} == {1012}


async def _goaway(socket: Socket) -> Frame:
    while (frame := await socket.receive())["type"] != "goaway":
        pass
    return frame


async def _until_closed(socket: Socket) -> AsyncIterator[Frame]:
    while True:
        try:
            yield await socket.receive()
        except ConnectionClosed:
            return
