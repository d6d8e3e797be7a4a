"""What a connection agrees on, against scripted peers: keys, credit, priority, moving away, and what carries it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobwire_client import (
    ConnectionFailed,
    End,
    Event,
    JobCancelled,
    Narration,
    Params,
    Refused,
    Token,
    connect,
)
from jobwire_client.options import Settings
from jobwire_client.subscription import Subscription
from scripted import Exchange, Frame, Link, scripted_http, scripted_worker
from test_sse import answers, created, sse, streams
from test_websocket import ID, QUICK, end, go_on_after_a, in_loop, silent, token

OTHER = "second-job-012345"


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


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
@in_loop
async def test_another_key_is_sent_before_the_first_expires(is_async: bool) -> None:
    renewed = asyncio.Event()

    async def script(link: Link) -> None:
        await link.accept()
        assert [(await link.receive("auth"))["token"] for _ in range(2)] == ["key-2", "key-3"]
        renewed.set()
        await link.send(token(1, "a"), end(2))
        await link.wait_closed()

    keys = Keys()
    source = keys.later if is_async else keys
    async with scripted_worker(script, hello={"expires_in": 0.05}) as peer, connect(peer.url, source) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "a"
        await renewed.wait()
    assert peer.connections == 1
    assert peer.headers[0]["Authorization"] == "Bearer key-1"


@in_loop
async def test_a_function_that_fails_for_now_is_asked_again() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        assert (await link.receive("auth"))["token"] == "key-3"
        await link.send(end(1))
        await link.wait_closed()

    async with scripted_worker(script, hello={"expires_in": 0.05}) as peer, connect(peer.url, Keys(fail_at=2)) as jw:
        assert await jw.run("Hi", job_id=ID).text() == ""


@in_loop
async def test_a_function_that_fails_at_first_is_said() -> None:
    async with scripted_worker(silent) as peer:
        with pytest.raises(ConnectionFailed, match="the shop is closed"):
            await connect(peer.url, Keys(fail_at=1)).__aenter__()
    assert peer.connections == 0


@in_loop
async def test_a_fixed_key_is_never_sent_again() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        with pytest.raises(TimeoutError):  # many times what is left of its life
            await asyncio.wait_for(link.receive("auth"), 0.2)
        await link.send(end(1))
        await link.wait_closed()

    async with scripted_worker(script, hello={"expires_in": 0.01}) as peer, connect(peer.url, "key") as jw:
        assert await jw.run("Hi", job_id=ID).text() == ""


@in_loop
async def test_an_expired_key_is_replaced_and_the_job_goes_on() -> None:
    async def expires(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"))
        await link.socket.close(4401, "expired")

    async with scripted_worker(expires, go_on_after_a) as peer, connect(peer.url, Keys(), **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"
    assert [headers["Authorization"] for headers in peer.headers] == ["Bearer key-1", "Bearer key-2"]


@in_loop
async def test_a_key_that_is_refused_twice_in_a_row_is_wrong() -> None:
    async def refuse(link: Link) -> None:
        await link.socket.close(4401, "unknown key")

    keys = Keys()
    async with scripted_worker(refuse, greets=False) as peer:
        with pytest.raises(ConnectionFailed, match="unknown key") as failed:
            await connect(peer.url, keys).__aenter__()
        assert failed.value.code == "unauthorized"
    assert (keys.asked, peer.connections) == (2, 2)


@in_loop
async def test_the_key_goes_as_a_frame_when_the_worker_asks_and_another_hello_follows() -> None:
    async def refuse(link: Link) -> None:
        assert (await link.receive("auth"))["token"] == "key-1"
        await link.socket.close(4401, "unknown key")

    async def script(link: Link) -> None:
        assert (await link.receive("auth"))["token"] == "key-2"
        await link.send({"type": "hello", "protocol": "jobwire.v1", "auth": "ok", "limits": {"max_window": 1}})
        assert (await link.accept())["window"] == 1
        await link.send(end(1))
        await link.wait_closed()

    async with scripted_worker(refuse, script, hello={"auth": "required"}) as peer, connect(peer.url, Keys()) as jw:
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


# ---- credit ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 4),
    plan=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5)), max_size=6),
    pauses=st.lists(st.integers(0, 3), min_size=1, max_size=10),
)
def test_text_is_exact_through_cuts_and_no_frame_comes_without_credit(
    window: int, plan: list[tuple[int, int]], pauses: list[int]
) -> None:
    """The peer keeps to the window, and cuts after some frames; the reader dawdles."""
    log = [token(n, f"{n} ") for n in range(1, 31)] + [end(31)]
    cuts = iter(plan)

    async def script(link: Link) -> None:
        request = await link.accept()
        assert request["window"] == window
        at = int(request.get("after", "e-0").removeprefix("e-"))
        frames_max, merge = next(cuts, (len(log), 2))
        in_flight: deque[int] = deque()
        for _ in range(frames_max):
            while len(in_flight) == window:
                heard = int((await link.receive("ack"))["cursor"].removeprefix("e-"))
                while in_flight and in_flight[0] <= heard:
                    in_flight.popleft()
            run = log[at : min(at + merge, 30)] or log[30:]
            at += len(run)
            texts = {"text": "".join(frame["text"] for frame in run), "n": len(run)} if at <= 30 else {}
            await link.send({**run[-1], **texts})
            in_flight.append(at)
            if at == len(log):
                return await link.wait_closed()
        return await link.cut()

    @in_loop
    async def case() -> None:
        async with scripted_worker(script) as peer, connect(peer.url, window=window, **QUICK) as jw:
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

    async def script(link: Link) -> None:
        assert (await link.accept())["window"] == 2
        await link.send(token(1, "a"), token(2, "b", index=1))
        assert "window" not in await link.accept()  # what comes next from the client is this, and no ack
        await link.send(end(1, job_id=OTHER))
        taken.set()
        assert (await link.receive("ack")) == {"type": "ack", "job_id": ID, "cursor": "e-1"}
        heard.set()
        await link.send(end(3))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url, window=2) as jw:
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
    assert subscription.take() == Token(ID, "e-2", "aa", n=2)
    for frame in subscription.frames(lambda _: "2", 9):
        acks.append(frame["cursor"])
        subscription.receive(Token(ID, "e-3", "b"))
        subscription.take()
    acks += [frame["cursor"] for frame in subscription.frames(lambda _: "3", 9)]
    assert acks == ["e-2", "e-3"]


@pytest.mark.parametrize(("max_window", "sent"), [(0, None), (3, 3), (99, 5)])
@in_loop
async def test_a_window_is_no_bigger_than_the_worker_offers(max_window: int, sent: int | None) -> None:
    async def script(link: Link) -> None:
        assert (await link.accept("subscribe")).get("window") == sent
        await link.send(token(1, "a"), end(2))
        await link.wait_closed()

    limits = {"limits": {"heartbeat_s": 15, "max_window": max_window}}
    async with scripted_worker(script, hello=limits) as peer, connect(peer.url) as jw:
        assert await jw.subscribe(ID, window=5).text() == "a"


@in_loop
async def test_a_window_is_no_part_of_a_post() -> None:
    async with (
        scripted_http(created, streams(sse(token(1, "a"), end(2)))) as (url, exchanges),
        connect(url, transport="sse", window=1) as jw,
    ):
        assert await jw.run("Hi", job_id=ID).text() == "a"
    assert "window" not in exchanges[0].body


# ---- priority, and what else a job has -------------------------------------------------------------------------------


@in_loop
async def test_update_changes_the_priority_and_tells_the_place() -> None:
    async def script(link: Link) -> None:
        await link.accept(state="queued", queue={"position": 9})
        request = await link.accept("update", state="queued", queue={"position": 1})
        assert (request["job_id"], request["priority"]) == (ID, 9)
        await link.refuse(await link.receive("update"), "invalid_params", 422)
        await link.send(token(1, "a"), end(2))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = await jw.create("Hi", job_id=ID, priority=1)
        assert (await job.update(priority=9))["queue"] == {"position": 1}
        with pytest.raises(Refused, match="invalid_params"):
            await job.update(priority=10)
        assert await job.text() == "a"  # a refused update is no failure of the job
        await job.update(priority=0)  # after the end there is nothing to ask


@in_loop
async def test_an_update_survives_a_cut() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.receive("update")
        await link.cut()

    async def second(link: Link) -> None:
        await link.accept()
        assert (await link.accept("update"))["priority"] == 7
        await link.send(end(1))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await job.update(priority=7)
        assert await job.text() == ""


@in_loop
async def test_over_sse_there_is_no_update() -> None:
    answered = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await answered.wait()
        await exchange.stream(sse(end(1)))

    async with scripted_http(created, stream) as (url, _), connect(url, transport="sse") as jw:
        job = jw.run("Hi", job_id=ID)
        with pytest.raises(Refused, match="unsupported_operation"):
            await job.update(priority=9)
        answered.set()
        assert await job.text() == ""


@in_loop
async def test_over_sse_too_only_the_channels_that_were_asked_for_are_read() -> None:
    note = {"type": "narration", "job_id": ID, "cursor": "e-2", "human": "Half."}
    stream = streams(sse(token(1, "a"), note, token(3, "b"), end(4)))
    async with scripted_http(stream) as (url, _), connect(url, transport="sse") as jw:
        events = [event async for event in jw.subscribe(ID, channels=["narration"])]
    assert [type(event) for event in events] == [Narration, End]


@in_loop
async def test_choices_have_their_own_texts_and_tokens_their_likelihoods() -> None:
    likely = [{"id": 7, "text": "a", "logprob": -0.1}, {"id": 8, "text": "b", "logprob": -2.5}]

    async def script(link: Link) -> None:
        request = await link.accept()
        assert {name: request[name] for name in params} == params
        more: Frame = {"ids": [7], "logprobs": [-0.1], "top_logprobs": [likely]}
        await link.send(token(1, "a", **more), token(2, "x", index=1), token(3, "b"), token(4, "y", index=1))
        await link.send(token(5, "hm", kind="reasoning"), end(6, finish_reasons=["stop", "length", "stop"]))
        await link.wait_closed()

    params: Params = {"n": 3, "include": ["ids", "top_logprobs"], "deadline_ms": 9000, "detach": True, "coalesce_ms": 5}
    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = jw.run("Hi", job_id=ID, **params)
        first = await anext(job)
        assert isinstance(first, Token)
        assert (first.ids, first.logprobs, first.top_logprobs) == ((7,), (-0.1,), (likely,))
        assert await job.texts() == ["ab", "xy", ""]
        assert job.end is not None
        assert job.end.finish_reasons == ("stop", "length", "stop")


@in_loop
async def test_narration_tells_the_phase() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        note = {"type": "narration", "job_id": ID, "cursor": "e-1", "human": "Half.", "phase": "prefill"}
        await link.send({**note, "progress": 0.5}, end(2))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        note = await anext(jw.run("Hi", job_id=ID))
        assert isinstance(note, Narration)
        assert (note.phase, note.progress, note.human) == ("prefill", 0.5, "Half.")


# ---- moving away -----------------------------------------------------------------------------------------------------


@in_loop
async def test_after_goaway_old_jobs_finish_and_new_ones_go_to_a_new_connection() -> None:
    second_is_up = asyncio.Event()
    old_may_finish = asyncio.Event()

    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), {"type": "goaway", "reason": "draining", "retry_ms": 1})
        await old_may_finish.wait()
        await link.accept("cancel")  # what is asked about an old job stays with it
        await link.send(token(2, "b"), end(3, "cancelled"))
        await link.wait_closed()
        assert link.socket.close_code == 1000

    async def second(link: Link) -> None:
        second_is_up.set()
        assert (await link.accept())["job_id"] == OTHER
        await link.send(token(1, "new", job_id=OTHER), end(2, job_id=OTHER))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        old = jw.run("Hi", job_id=ID)
        await anext(old)
        new = jw.run("Hi", job_id=OTHER)
        assert await new.text() == "new"
        assert second_is_up.is_set()
        old_may_finish.set()
        await old.cancel()
        with pytest.raises(JobCancelled) as cancelled:
            await old.text()
        assert cancelled.value.text == "ab"
    assert peer.connections == 2


@in_loop
async def test_an_old_connection_that_ends_hands_its_jobs_over() -> None:
    second_is_up = asyncio.Event()

    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), {"type": "goaway", "reason": "draining", "retry_ms": 1})
        await second_is_up.wait()
        await link.socket.close(1012, "restart")

    async def second(link: Link) -> None:
        await link.accept()
        second_is_up.set()
        resumed = await link.accept()
        assert (resumed["job_id"], resumed["after"]) == (ID, "e-1")
        await link.send(token(2, "b"), end(3), end(1, job_id=OTHER))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        old = jw.run("Hi", job_id=ID)
        await anext(old)
        new = jw.run("Hi", job_id=OTHER)
        assert [*await asyncio.gather(old.text(), new.text())] == ["ab", ""]
    assert peer.connections == 2


@in_loop
async def test_after_goaway_no_close_code_is_final() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), {"type": "goaway", "reason": "draining", "retry_ms": 1})
        await link.socket.close(1000)

    async with scripted_worker(first, go_on_after_a) as peer, connect(peer.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"


@in_loop
async def test_without_jobs_a_goaway_closes_and_nothing_is_opened() -> None:
    left = asyncio.Event()

    async def first(link: Link) -> None:
        await link.send({"type": "goaway", "reason": "draining", "retry_ms": 1})
        await link.wait_closed()
        left.set()

    async def second(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), end(2))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        await left.wait()
        assert peer.connections == 1
        assert await jw.run("Hi", job_id=ID).text() == "a"


@in_loop
async def test_a_new_job_waits_through_a_restart() -> None:
    async def draining(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), {"type": "goaway", "reason": "draining", "retry_ms": 1})
        await link.wait_closed()

    async def dying(link: Link) -> None:
        await link.cut()

    async def back(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "b", job_id=OTHER), end(2, job_id=OTHER))
        await link.wait_closed()

    async with scripted_worker(draining, dying, dying, back) as peer, connect(peer.url, **QUICK) as jw:
        await anext(jw.run("Hi", job_id=ID))
        assert await jw.run("Hi", job_id=OTHER).text() == "b"
    assert peer.connections == 4


# ---- what carries it -------------------------------------------------------------------------------------------------


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


def test_an_unknown_transport_is_refused() -> None:
    pigeon: Any = "pigeon"
    with pytest.raises(ValueError, match="pigeon"):
        connect("http://127.0.0.1:1", transport=pigeon)


@in_loop
async def test_over_sse_a_job_that_nobody_reads_is_not_read_on() -> None:
    """TCP holds the writer back, and nothing is lost or doubled when the reader comes."""
    total = 20_000
    written = 0

    async def stream(exchange: Exchange) -> None:
        nonlocal written
        await exchange.stream()
        while written < total:
            written += 1
            await exchange.send(sse(token(written, f"{written} ", padding="x" * 1000)))
        await exchange.send(sse(end(total + 1)))
        await exchange.finish()

    async with (
        scripted_http(created, stream) as (url, _),
        connect(url, transport="sse", unread_bytes_max=100_000) as jw,
    ):
        job = await jw.create("Count", job_id=ID)
        before = -1
        while before != written:  # until the writer is stuck
            before = written
            await asyncio.sleep(0.6)  # the kernel alone may take 200 ms between two windows
        assert written < total
        numbers = [int(word) for word in (await job.text()).split()]
        assert numbers == list(range(1, total + 1))


@in_loop
async def test_over_sse_a_job_closed_at_once_runs_all_the_same_and_frees_its_id() -> None:
    posted = asyncio.Event()

    async def accept(exchange: Exchange) -> None:
        await created(exchange)
        posted.set()

    async with scripted_http(accept, streams(sse(end(1)))) as (url, _), connect(url, transport="sse", **QUICK) as jw:
        await jw.run("Hi", job_id=ID, detach=True).aclose()
        await posted.wait()
        await jw.subscribe(OTHER).aclose()  # before anything was asked
        while True:
            with contextlib.suppress(ValueError):  # it is watched until the next turns of the loop
                again = jw.subscribe(OTHER)
                break
            await asyncio.sleep(0)
        assert [event async for event in again] != []


@in_loop
async def test_over_sse_closing_the_client_ends_every_wait() -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        await asyncio.Event().wait()

    events: list[Event] = []
    async with scripted_http(created, stream) as (url, _):
        async with connect(url, transport="sse") as jw:
            job = jw.run("Hi", job_id=ID)
            events.append(await anext(job))
            reading = asyncio.create_task(job.text())
            await asyncio.sleep(0)
        with pytest.raises(ConnectionFailed) as closed:
            await reading
        assert closed.value.code == "closed"
    assert isinstance(events[0], Token)
