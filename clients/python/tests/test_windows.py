"""Windows: how many frames the worker sends ahead of the reader."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobwire_client import Token, connect
from jobwire_client.options import Settings
from jobwire_client.subscription import Subscription
from scripted import Peer, scripted_http, scripted_worker
from steps import ID, OTHER, QUICK, created, end, in_loop, sse, streams, token


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 4),
    plan=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), max_size=6),
    pauses=st.lists(st.integers(0, 3), min_size=1, max_size=10),
)
def test_text_is_exact_through_cuts_and_no_frame_comes_without_credit(
    window: int, plan: list[tuple[int, int]], pauses: list[int]
) -> None:
    """The worker keeps to the window, and cuts after some frames; the reader dawdles."""
    log = [token(n, f"{n} ") for n in range(1, 31)] + [end(31)]
    cuts = iter(plan)

    async def script(peer: Peer) -> None:
        request = await peer.accept()
        assert request["window"] == window
        at = int(request.get("after", "e-0").removeprefix("e-"))
        frames_max, merge = next(cuts, (len(log), 2))
        in_flight: deque[int] = deque()
        for _ in range(frames_max):
            while len(in_flight) == window:
                heard = int((await peer.receive("ack"))["cursor"].removeprefix("e-"))
                while in_flight and in_flight[0] <= heard:
                    in_flight.popleft()
            run = log[at : min(at + merge, 30)] or log[30:]
            at += len(run)
            texts = {"text": "".join(frame["text"] for frame in run), "n": len(run)} if at <= 30 else {}
            await peer.send({**run[-1], **texts})
            in_flight.append(at)
            if at == len(log):
                return await peer.wait_closed()
        return await peer.cut()

    @in_loop
    async def case() -> None:
        async with scripted_worker(script) as worker, connect(worker.url, window=window, **QUICK) as jw:
            job = jw.run("Count", job_id=ID)
            read = 0
            async for _ in job:
                for _ in range(pauses[read % len(pauses)]):
                    await asyncio.sleep(0)
                read += 1
            assert await job.text() == "".join(f"{n} " for n in range(1, 31))

    case()


@in_loop
async def test_nothing_is_acknowledged_that_nobody_took() -> None:
    taken, heard = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        assert (await peer.accept())["window"] == 2
        await peer.send(token(1, "a"), token(2, "b", index=1))
        assert "window" not in await peer.accept()  # what comes next from the client is this, and no ack
        await peer.send(end(1, job_id=OTHER))
        taken.set()
        assert (await peer.receive("ack")) == {"type": "ack", "job_id": ID, "cursor": "e-1"}
        heard.set()
        await peer.send(end(3))
        await peer.wait_closed()

    async with scripted_worker(script) as worker, connect(worker.url, window=2) as jw:
        job = await jw.create("Hi", job_id=ID)
        await jw.run("Hi", job_id=OTHER, window=0).text()
        await taken.wait()
        await anext(job)
        await heard.wait()
        assert await job.text() == "a"


@in_loop
async def test_what_is_taken_while_an_ack_is_sent_is_acknowledged_too() -> None:
    """A send may wait, and the next frame may come and be read before it goes on."""
    settings = Settings("http://127.0.0.1:1", None)
    subscription = Subscription({"type": "create", "job_id": ID, "window": 1}, None, settings, lambda: None)
    (create,) = subscription.frames(lambda _: "1", 9)
    subscription.answered({"type": "accepted"})
    acks: list[str] = []
    for n in (1, 2):
        subscription.receive(Token(ID, f"e-{n}", "a"))
    assert create["window"] == 1
    assert subscription.pop() == Token(ID, "e-2", "aa", n=2)
    for frame in subscription.frames(lambda _: "2", 9):
        acks.append(frame["cursor"])
        subscription.receive(Token(ID, "e-3", "b"))
        subscription.pop()
    acks += [frame["cursor"] for frame in subscription.frames(lambda _: "3", 9)]
    assert acks == ["e-2", "e-3"]


@pytest.mark.parametrize(("max_window", "sent"), [(0, None), (3, 3), (99, 5)])
@in_loop
async def test_a_window_is_no_bigger_than_the_worker_offers(max_window: int, sent: int | None) -> None:
    async def script(peer: Peer) -> None:
        assert (await peer.accept("subscribe")).get("window") == sent
        await peer.send(token(1, "a"), end(2))
        await peer.wait_closed()

    limits = {"limits": {"heartbeat_s": 15, "max_window": max_window}}
    async with scripted_worker(script, hello=limits) as worker, connect(worker.url) as jw:
        assert await jw.subscribe(ID, window=5).text() == "a"


@in_loop
async def test_a_window_is_no_part_of_a_post() -> None:
    async with (
        scripted_http(created, streams(sse(token(1, "a"), end(2)))) as (url, exchanges),
        connect(url, transport="sse", window=1) as jw,
    ):
        assert await jw.run("Hi", job_id=ID).text() == "a"
    assert "window" not in exchanges[0].body
