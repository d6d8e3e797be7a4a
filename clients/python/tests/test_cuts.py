"""Cuts: jobs resume after their cursor, and no text is lost or doubled."""

from __future__ import annotations

import asyncio
import time

import pytest
from clock import Clock, settle
from hypothesis import given, settings
from hypothesis import strategies as st
from jobwire_client import ConnectionFailed, End, Reset, Token, connect
from scripted import Frame, Peer, scripted_worker
from steps import ID, QUICK, cut_after, end, events_of, go_on_after_a, in_loop, serves, token


@pytest.mark.parametrize("half", [b"", b"\x81", b"\x81\x7e\x01", b'\x81\x7e\x01\x00{"type":"token","tex'])
@in_loop
async def test_a_cut_in_a_frame_is_resumed_with_the_same_request(half: bytes) -> None:
    requests: list[Frame] = []

    async def first(peer: Peer) -> None:
        requests.append(await peer.accept())
        await peer.send(token(1, "one "), token(2, "two "))
        await peer.cut(half)

    async def second(peer: Peer) -> None:
        requests.append(await peer.accept(replayed=True))
        await peer.send(token(3, "three"), end(4))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        assert await jw.run("Count", job_id=ID, seed=1).text() == "one two three"
    before, after = requests
    assert after.pop("after") == "e-2"
    assert (before.pop("ref"), after.pop("ref")) == ("1", "1")  # of two connections
    assert before == after


@in_loop
async def test_a_cut_before_accepted_creates_again() -> None:
    async def first(peer: Peer) -> None:
        await peer.receive("create")
        await peer.cut()

    async def second(peer: Peer) -> None:
        request = await peer.accept()
        assert "after" not in request
        await peer.send(token(1, "a"), end(2))
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        assert await (await jw.create("Hi", job_id=ID)).text() == "a"


class LogWorker:
    """Serves one job's log as protocol.md says: from `after`, merging at will, cutting where the plan says."""

    def __init__(self, pieces: list[str], plan: list[tuple[int, int]]) -> None:
        self.log = [token(n, text) for n, text in enumerate(pieces, 1)] + [end(len(pieces) + 1)]
        self.plan = plan

    async def __call__(self, peer: Peer) -> None:
        request = await peer.accept()
        at = int(request.get("after", "e-0").removeprefix("e-"))
        count, merge = self.plan.pop(0) if self.plan else (len(self.log), 1)
        for _ in range(count):
            frames = self.log[at : at + merge]
            if len(frames) > 1 and all(frame["type"] == "token" for frame in frames):
                await peer.send({**frames[-1], "text": "".join(f["text"] for f in frames), "n": len(frames)})
            else:
                await peer.send(*frames)
            at += len(frames)
        if at < len(self.log):
            await peer.cut()
        await peer.wait_closed()


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.text(max_size=3), max_size=12),
    plan=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=6),
)
def test_text_is_exact_whatever_is_cut_and_merged(pieces: list[str], plan: list[tuple[int, int]]) -> None:
    @in_loop
    async def case() -> None:
        async with scripted_worker(LogWorker(pieces, plan)) as worker, connect(worker.url, **QUICK) as jw:
            events = await events_of(jw.run("Count", job_id=ID))
            texts = [event for event in events if isinstance(event, Token)]
            assert "".join(event.text for event in texts) == "".join(pieces)
            assert sum(event.n for event in texts) == len(pieces)
            assert [type(event) for event in events].count(End) == 1

    case()


@in_loop
async def test_reset_starts_the_text_over() -> None:
    first = cut_after(token(1, "lost "))

    async def second(peer: Peer) -> None:
        assert (await peer.accept(reset=True))["after"] == "e-1"
        await peer.send({**token(1, "anew"), "cursor": "f-1"})
        await peer.cut()

    async def third(peer: Peer) -> None:
        assert (await peer.accept())["after"] == "f-1"
        await peer.send({**end(2), "cursor": "f-2"})
        await peer.wait_closed()

    async with scripted_worker(first, second, third) as worker, connect(worker.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        assert isinstance(await anext(job), Token)
        assert await anext(job) == Reset(ID)
        assert await job.text() == "anew"


@in_loop
async def test_what_was_unread_before_a_reset_is_never_read() -> None:
    back = asyncio.Event()

    first = cut_after(token(1, "lost "))

    async def second(peer: Peer) -> None:
        await peer.accept(reset=True)
        await peer.send({**token(1, "anew"), "cursor": "f-1"}, {**end(2), "cursor": "f-2"})
        back.set()
        await peer.accept("subscribe")
        await peer.wait_closed()

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await back.wait()  # before anything is read
        await jw.subscribe("second-job-012345").wait_accepted()
        assert [type(event) for event in await events_of(job)] == [Reset, Token, End]
        assert await job.text() == "anew"


@pytest.mark.parametrize("close_code", [1001, 1009, 1011, 1012, 4503, 4504, 4000])
@in_loop
async def test_other_close_codes_reconnect(close_code: int) -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"))
        await peer.socket.close(close_code)

    async with scripted_worker(first, go_on_after_a) as worker, connect(worker.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"


@in_loop
async def test_a_peer_that_speaks_no_json_is_a_cut() -> None:
    async def first(peer: Peer) -> None:
        await peer.accept()
        await peer.socket.send("not json")
        await peer.wait_closed()

    second = serves(end(1))

    async with scripted_worker(first, second) as worker, connect(worker.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == ""


@in_loop
async def test_two_silent_heartbeats_are_a_cut() -> None:
    first = serves(token(1, "a"))

    async def second(peer: Peer) -> None:
        assert (await peer.accept())["after"] == "e-1"
        await peer.send({"type": "pong"}, end(2))
        await peer.wait_closed()

    async with (
        scripted_worker(first, second, hello={"limits": {"heartbeat_s": 0.05}}) as worker,
        connect(worker.url, **QUICK) as jw,
    ):
        assert await jw.run("Hi", job_id=ID).text() == "a"
        assert worker.connections == 2


@in_loop
async def test_an_outage_is_bounded_in_time() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.wait_closed()

    async with scripted_worker(script) as worker:
        jw = await connect(worker.url, retry_timeout_s=0.3, backoff_s=(0.01, 0.05)).__aenter__()
        job = await jw.create("Hi")
    started = time.monotonic()
    with pytest.raises(ConnectionFailed) as failed:
        await job.text()
    assert failed.value.code == "connection_failed"
    assert time.monotonic() - started < 5
    await jw.aclose()


@in_loop
async def test_connections_that_say_hello_and_die_are_an_outage_too() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.cut()

    async with (
        scripted_worker(script) as worker,
        connect(worker.url, retry_timeout_s=0.2, backoff_s=(0.01, 0.02)) as jw,
    ):
        with pytest.raises(ConnectionFailed):
            await jw.run("Hi", job_id=ID).text()
        assert worker.connections > 3


@in_loop
async def test_no_reconnect_while_nothing_is_wanted_and_no_pause_when_it_is(clock: Clock) -> None:
    """The pause after a cut passes whether or not a job wants the connection."""
    pause_s = 10.0
    cut = asyncio.Event()

    async def first(peer: Peer) -> None:
        await peer.cut()
        cut.set()

    second = serves(token(1, "a"), end(2))
    async with scripted_worker(first, second) as worker, connect(worker.url, backoff_s=(pause_s, pause_s)) as jw:
        await cut.wait()
        await settle()  # the client sees the cut, and the pause begins
        clock.advance(pause_s)
        await settle()
        assert worker.connections == 1
        async with asyncio.timeout(pause_s / 2):  # the shortest pause
            assert await jw.run("Hi", job_id=ID).text() == "a"
