"""The client over WebSocket, against scripted peers: cuts, resets, refusals, silence, slow readers."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobwire_client import (
    ConnectionFailed,
    End,
    Event,
    Job,
    JobCancelled,
    JobFailed,
    Narration,
    Refused,
    Reset,
    Token,
    connect,
)
from scripted import Frame, Link, scripted_worker

P = ParamSpec("P")
QUICK: dict[str, Any] = {"backoff_s": (0.001, 0.01)}
ID = "job-0123456789abcdef"


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test in a loop of its own, for at most 20 seconds."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


def token(at: int, text: str, job_id: str = ID, **more: Any) -> Frame:
    return {"type": "token", "job_id": job_id, "cursor": f"e-{at}", "text": text, **more}


def end(at: int, status: str = "completed", job_id: str = ID, **more: Any) -> Frame:
    return {"type": "end", "job_id": job_id, "cursor": f"e-{at}", "status": status, "usage": {}, **more}


async def go_on_after_a(link: Link) -> None:
    """The worker to which a client comes back that has read "a": sends the rest, and the end."""
    assert (await link.accept())["after"] == "e-1"
    await link.send(token(2, "b"), end(3))
    await link.wait_closed()


async def events_of(job: Job) -> list[Event]:
    return [event async for event in job]


async def silent(link: Link) -> None:
    """A script that says hello and no more."""
    await link.wait_closed()


@in_loop
async def test_one_job_from_create_to_end() -> None:
    async def script(link: Link) -> None:
        request = await link.accept()
        assert {key: request[key] for key in ("prompt", "max_tokens", "stop")} == {
            "prompt": "Hi", "max_tokens": 5, "stop": ["x"],
        }  # fmt: skip
        assert "after" not in request
        note = {"type": "narration", "cursor": "e-1", "actor": "scheduler", "action": "queued", "human": "First."}
        await link.send({**note, "job_id": ID, "queue": {"position": 1}})
        await link.send(token(2, "Hel"), token(4, "lo", n=2, ids=[7, 8], logprobs=[-0.5, -1.5]))
        await link.send(end(5, finish_reason="stop", usage={"completion_tokens": 3}))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url, token="key") as jw:
        job = await jw.create("Hi", job_id=ID, max_tokens=5, stop=["x"])
        narration, *tokens, last = await events_of(job)
        assert isinstance(narration, Narration)
        assert (narration.action, narration.human, narration.fields["queue"]) == ("queued", "First.", {"position": 1})
        assert "".join(event.text for event in tokens if isinstance(event, Token)) == "Hello"
        assert sum(event.n for event in tokens if isinstance(event, Token)) == 3
        assert isinstance(last, End)
        assert (last.status, last.finish_reason, last.usage) == ("completed", "stop", {"completion_tokens": 3})
        assert await job.text() == "Hello"
        assert (job.cursor, job.end, job.accepted["state"]) == ("e-5", last, "running")
        assert peer.headers[0]["Authorization"] == "Bearer key"
        assert peer.subprotocols == ["jobwire.v1"]


@in_loop
async def test_messages_go_as_messages_and_the_id_is_made_up() -> None:
    async def script(link: Link) -> None:
        request = await link.accept()
        assert request["messages"] == [{"role": "user", "content": "Hi"}]
        assert "prompt" not in request
        assert len(request["job_id"]) == 36
        await link.send(end(1, job_id=request["job_id"]))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        assert await jw.run([{"role": "user", "content": "Hi"}]).text() == ""


@in_loop
async def test_unknown_types_and_fields_are_ignored() -> None:
    async def script(link: Link) -> None:
        await link.accept(novelty=1)
        await link.send({"type": "weather", "job_id": ID}, {"no": "type"}, token(1, "a", mood="fine"))
        await link.send({"type": "error", "error": {"code": "bad_frame"}})
        await link.send(token(9, "not mine", job_id="another-job-1234"))
        await link.send(end(2))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "a"


@pytest.mark.parametrize("half", [b"", b"\x81", b"\x81\x7e\x01", b'\x81\x7e\x01\x00{"type":"token","tex'])
@in_loop
async def test_a_cut_in_a_frame_is_resumed_with_the_same_request(half: bytes) -> None:
    requests: list[Frame] = []

    async def first(link: Link) -> None:
        requests.append(await link.accept())
        await link.send(token(1, "one "), token(2, "two "))
        await link.cut(half)

    async def second(link: Link) -> None:
        requests.append(await link.accept(replayed=True))
        await link.send(token(3, "three"), end(4))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        assert await jw.run("Count", job_id=ID, seed=1).text() == "one two three"
    before, after = requests
    assert after.pop("after") == "e-2"
    assert (before.pop("ref"), after.pop("ref")) == ("1", "1")  # of two connections
    assert before == after


@in_loop
async def test_a_cut_before_accepted_creates_again() -> None:
    async def first(link: Link) -> None:
        await link.receive("create")
        await link.cut()

    async def second(link: Link) -> None:
        request = await link.accept()
        assert "after" not in request
        await link.send(token(1, "a"), end(2))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        assert await (await jw.create("Hi", job_id=ID)).text() == "a"


class LogWorker:
    """Serves one job's log as protocol.md says: from `after`, merging at will, cutting where the plan says."""

    def __init__(self, pieces: list[str], plan: list[tuple[int, int]]) -> None:
        self.log = [token(n, text) for n, text in enumerate(pieces, 1)] + [end(len(pieces) + 1)]
        self.plan = plan

    async def __call__(self, link: Link) -> None:
        request = await link.accept()
        at = int(request.get("after", "e-0").removeprefix("e-"))
        count, merge = self.plan.pop(0) if self.plan else (len(self.log), 1)
        for _ in range(count):
            frames = self.log[at : at + merge]
            if len(frames) > 1 and all(frame["type"] == "token" for frame in frames):
                await link.send({**frames[-1], "text": "".join(f["text"] for f in frames), "n": len(frames)})
            else:
                await link.send(*frames)
            at += len(frames)
        if at < len(self.log):
            await link.cut()
        await link.wait_closed()


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.text(max_size=3), max_size=12),
    plan=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=6),
)
def test_text_is_exact_whatever_is_cut_and_merged(pieces: list[str], plan: list[tuple[int, int]]) -> None:
    @in_loop
    async def case() -> None:
        async with scripted_worker(LogWorker(pieces, plan)) as peer, connect(peer.url, **QUICK) as jw:
            events = await events_of(jw.run("Count", job_id=ID))
            texts = [event for event in events if isinstance(event, Token)]
            assert "".join(event.text for event in texts) == "".join(pieces)
            assert sum(event.n for event in texts) == len(pieces)
            assert [type(event) for event in events].count(End) == 1

    case()


@in_loop
async def test_reset_starts_the_text_over() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "lost "))
        await link.cut()

    async def second(link: Link) -> None:
        assert (await link.accept(reset=True))["after"] == "e-1"
        await link.send({**token(1, "anew"), "cursor": "f-1"})
        await link.cut()

    async def third(link: Link) -> None:
        assert (await link.accept())["after"] == "f-1"
        await link.send({**end(2), "cursor": "f-2"})
        await link.wait_closed()

    async with scripted_worker(first, second, third) as peer, connect(peer.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        assert isinstance(await anext(job), Token)
        assert await anext(job) == Reset(ID)
        assert await job.text() == "anew"


@in_loop
async def test_what_was_unread_before_a_reset_is_never_read() -> None:
    back = asyncio.Event()

    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "lost "))
        await link.cut()

    async def second(link: Link) -> None:
        await link.accept(reset=True)
        await link.send({**token(1, "anew"), "cursor": "f-1"}, {**end(2), "cursor": "f-2"})
        back.set()
        await link.accept("subscribe")
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await back.wait()  # before anything is read
        await jw.subscribe("second-job-012345").wait_accepted()
        assert [type(event) for event in await events_of(job)] == [Reset, Token, End]
        assert await job.text() == "anew"


@pytest.mark.parametrize(
    ("close_code", "code"),
    [(1000, "closed_1000"), (4400, "protocol_abuse"), (4401, "unauthorized"), (4403, "forbidden"), (4406, "version"),
     (4408, "auth_timeout"), (4499, "closed_4499")],
)  # fmt: skip
@in_loop
async def test_final_close_codes_raise(close_code: int, code: str) -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.socket.close(close_code, "because")

    async with scripted_worker(script) as peer, connect(peer.url, **QUICK) as jw:
        with pytest.raises(ConnectionFailed, match="because") as failed:
            await jw.run("Hi", job_id=ID).text()
        assert failed.value.code == code
        with pytest.raises(ConnectionFailed):
            jw.run("Again")
        assert peer.connections == 1


@pytest.mark.parametrize("close_code", [1001, 1009, 1011, 1012, 4503, 4504, 4000])
@in_loop
async def test_other_close_codes_reconnect(close_code: int) -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"))
        await link.socket.close(close_code)

    async with scripted_worker(first, go_on_after_a) as peer, connect(peer.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"


@in_loop
async def test_a_refused_key_raises() -> None:
    async def script(link: Link) -> None:
        await link.socket.close(4401, "Unknown key")

    # The hello came before the close, so the first wait meets it.
    async with scripted_worker(script) as peer, connect(peer.url, token="wrong") as jw:
        with pytest.raises(ConnectionFailed, match="Unknown key"):
            await jw.run("Hi").text()


@in_loop
async def test_nothing_listens() -> None:
    async with scripted_worker(silent) as peer:
        url = peer.url
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
    async with scripted_worker(silent) as peer:
        ws_url = peer.url.replace("http", "ws")
        for url in (peer.url, peer.url + "/", ws_url, ws_url + "/v1/ws"):
            async with connect(url) as jw:
                assert jw.hello["protocol"] == "jobwire.v1"


@in_loop
async def test_two_silent_heartbeats_are_a_cut() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"))
        await link.wait_closed()

    async def second(link: Link) -> None:
        assert (await link.accept())["after"] == "e-1"
        await link.send({"type": "pong"}, end(2))
        await link.wait_closed()

    async with (
        scripted_worker(first, second, hello={"limits": {"heartbeat_s": 0.05}}) as peer,
        connect(peer.url, **QUICK) as jw,
    ):
        assert await jw.run("Hi", job_id=ID).text() == "a"
        assert peer.connections == 2


@in_loop
async def test_an_outage_is_bounded_in_time() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.wait_closed()

    async with scripted_worker(script) as peer:
        jw = await connect(peer.url, retry_timeout_s=0.3, backoff_s=(0.01, 0.05)).__aenter__()
        job = await jw.create("Hi")
    started = time.monotonic()
    with pytest.raises(ConnectionFailed) as failed:
        await job.text()
    assert failed.value.code == "connection_failed"
    assert time.monotonic() - started < 5
    await jw.aclose()


@in_loop
async def test_connections_that_say_hello_and_die_are_an_outage_too() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.cut()

    async with scripted_worker(script) as peer, connect(peer.url, retry_timeout_s=0.2, backoff_s=(0.01, 0.02)) as jw:
        with pytest.raises(ConnectionFailed):
            await jw.run("Hi", job_id=ID).text()
        assert peer.connections > 3


@in_loop
async def test_no_reconnect_while_nothing_is_wanted() -> None:
    cut = asyncio.Event()

    async def first(link: Link) -> None:
        await link.cut()
        cut.set()

    async def second(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), end(2))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        await cut.wait()
        for _ in range(20):  # many turns of the loop and many times the first pause
            await asyncio.sleep(0.002)
        assert peer.connections == 1
        assert await jw.run("Hi", job_id=ID).text() == "a"


@in_loop
async def test_goaway_is_the_least_to_wait() -> None:
    cut_at = 0.0
    waited = 0.0

    async def first(link: Link) -> None:
        nonlocal cut_at
        await link.accept()
        await link.send({"type": "goaway", "reason": "draining", "retry_ms": 200})
        cut_at = time.monotonic()
        await link.cut()

    async def second(link: Link) -> None:
        nonlocal waited
        waited = time.monotonic() - cut_at
        await link.accept()
        await link.send(end(1))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == ""
    assert waited >= 0.2


@in_loop
async def test_a_refusal_raises_with_its_code() -> None:
    async def script(link: Link) -> None:
        await link.refuse(await link.receive("create"), "queue_full", 429, retriable=True, retry_after_ms=700)
        await link.refuse(await link.receive("create"), "invalid_params", 422, errors=[{"pointer": "/top_p"}])
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        with pytest.raises(Refused, match="queue_full") as busy:
            await jw.create("Hi")
        assert (busy.value.code, busy.value.status, busy.value.retry_after_ms) == ("queue_full", 429, 700)
        with pytest.raises(Refused) as wrong:
            await jw.run("Hi", top_p=7).text()
        assert wrong.value.problem["errors"] == [{"pointer": "/top_p"}]
        assert wrong.value.retry_after_ms is None


@in_loop
async def test_a_resume_that_is_refused_for_now_waits() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"))
        await link.cut()

    async def second(link: Link) -> None:
        await link.refuse(await link.receive("create"), "overloaded", 503, retriable=True, retry_after_ms=5)
        assert (await link.accept())["after"] == "e-1"
        await link.send(token(2, "b"), end(3))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == "ab"


@in_loop
async def test_a_lost_job_raises_and_is_not_run_again() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"))
        await link.cut()

    async def second(link: Link) -> None:
        await link.refuse(await link.receive("create"), "job_lost", 410)
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        with pytest.raises(Refused) as lost:
            await events_of(job)
        assert (lost.value.code, job.cursor) == ("job_lost", "e-1")


@in_loop
async def test_cancel_before_accepted() -> None:
    async def script(link: Link) -> None:
        create = await link.receive("create")
        cancel = await link.receive("cancel")
        assert cancel["job_id"] == create["job_id"] == ID
        await link.send({"type": "accepted", "job_id": ID, "ref": create["ref"], "state": "queued"})
        await link.send({"type": "accepted", "job_id": ID, "ref": cancel["ref"], "state": "queued"})
        await link.send(end(1, "cancelled", reason="client"))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = jw.run("Hi", job_id=ID)
        await job.cancel()
        (last,) = await events_of(job)
        assert isinstance(last, End)
        assert last.status == "cancelled"
        await job.cancel()  # again is success, without a frame


@in_loop
async def test_a_cancel_survives_a_cut() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"))
        await link.receive("cancel")
        await link.cut()

    async def second(link: Link) -> None:
        assert (await link.accept())["after"] == "e-1"
        await link.accept("cancel")
        await link.send(end(2, "cancelled"))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        job = jw.run("Hi", job_id=ID)
        await anext(job)
        await job.cancel()
        with pytest.raises(JobCancelled) as cancelled:
            await job.text()
        assert cancelled.value.text == "a"


@pytest.mark.parametrize("status", ["failed", "expired"])
@in_loop
async def test_a_failed_job_raises(status: str) -> None:
    async def script(link: Link) -> None:
        await link.accept()
        problem = {"code": "engine_failed", "status": 500, "detail": "It broke.", "retriable": True}
        await link.send(token(1, "a"), end(2, status, error=problem))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = jw.run("Hi", job_id=ID)
        for _ in range(2):  # asked again, it says the same
            with pytest.raises(JobFailed, match="It broke") as failed:
                await job.text()
            assert failed.value.code == "engine_failed"
        assert job.end is not None
        assert job.end.status == status


@in_loop
async def test_jobs_share_a_connection_and_keep_apart() -> None:
    async def script(link: Link) -> None:
        ids = [(await link.accept())["job_id"] for _ in range(20)]
        for n in range(1, 11):
            await link.send(*(token(n, f"{job_id[-2:]}:{n} ", job_id=job_id) for job_id in ids))
        await link.send(*(end(11, job_id=job_id) for job_id in ids))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        jobs = [jw.run("Count", job_id=f"0123456789abcdef-{n:02}") for n in range(20)]
        with pytest.raises(ValueError, match="watches job"):
            jw.run("Count", job_id=jobs[0].id)
        texts = await asyncio.gather(*(job.text() for job in jobs))
        assert texts == ["".join(f"{n:02}:{i} " for i in range(1, 11)) for n in range(20)]
        assert peer.connections == 1


@in_loop
async def test_subscribe_goes_on_from_a_cursor() -> None:
    async def script(link: Link) -> None:
        request = await link.accept("subscribe")
        assert (request["job_id"], request["after"], request["channels"]) == (ID, "e-3", ["token"])
        await link.send(token(4, "d"), end(5))
        await link.refuse(await link.receive("subscribe"), "job_not_found", 404)
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        assert await jw.subscribe(ID, after="e-3", channels=["token"]).text() == "d"
        with pytest.raises(Refused, match="job_not_found"):
            await jw.subscribe("no-such-job-anywhere").text()


@in_loop
async def test_subscribe_at_the_end_has_nothing_to_say() -> None:
    async def script(link: Link) -> None:
        await link.accept("subscribe", state="ended", over=True)
        await link.accept("subscribe", state="ended")
        await link.send(end(5))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        assert await events_of(jw.subscribe(ID, after="e-5")) == []
        assert len(await events_of(jw.subscribe(ID, after="e-4"))) == 1


@in_loop
async def test_tokens_that_wait_are_read_as_one() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.send(*(token(n, f"{n} ", ids=[n]) for n in range(1, 6)), token(6, "other", index=1), end(7))
        await link.accept(job_id="second-job-012345")
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = jw.run("Count", job_id=ID)
        await jw.create("Hi", job_id="second-job-012345")  # accepted after all events of the first are here
        merged, other, last = await events_of(job)
        assert merged == Token(ID, "e-5", "1 2 3 4 5 ", n=5, ids=(1, 2, 3, 4, 5))
        assert other == Token(ID, "e-6", "other", index=1)
        assert isinstance(last, End)
        assert await job.text(1) == "other"


@in_loop
async def test_an_unread_job_is_put_down_and_taken_up_again() -> None:
    """The unread job costs bounded memory here, the other one flows on, and no text is lost or doubled."""
    other = "second-job-012345"
    many = 30  # few enough for one burst

    async def script(link: Link) -> None:
        await link.accept()
        await link.accept()
        put_down = asyncio.create_task(link.receive("unsubscribe"))
        sent = 0
        while not put_down.done():
            sent += 1
            await link.send(token(sent, f"{sent} "))
            await asyncio.sleep(0)
        assert (await put_down)["job_id"] == ID
        await link.send(*(token(n, f"{n} ") for n in range(sent + 1, sent + 4)))  # on their way when it was put down
        await link.send(*(token(n, f"{n} ", job_id=other) for n in range(1, many)), end(many, job_id=other))
        request = await link.receive("create")
        after = int(request["after"].removeprefix("e-"))
        assert 0 < after <= sent
        await link.send(token(sent + 3, f"{sent + 3} "))  # still from before
        await link.send({"type": "accepted", "job_id": ID, "ref": request["ref"], "state": "running"})
        last = sent + 10
        await link.send(*(token(n, f"{n} ") for n in range(after + 1, last + 1)), end(last + 1))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url, unread_bytes_max=10_000) as jw:
        unread, flowing = jw.run("Count", job_id=ID), jw.run("Count", job_id=other)
        assert await flowing.text() == "".join(f"{n} " for n in range(1, many))
        numbers = [int(word) for word in (await unread.text()).split()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 20


@in_loop
async def test_a_job_that_is_put_down_is_not_taken_up_by_a_reconnect() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.send(*(token(n, f"{n} ") for n in range(1, 101)))
        await link.receive("unsubscribe")
        await link.cut()

    back = asyncio.Event()

    async def second(link: Link) -> None:
        back.set()
        request = await link.accept("subscribe")  # the other job comes first: nobody reads the first one yet
        await link.send(end(1, job_id=request["job_id"]))
        after = int((await link.accept())["after"].removeprefix("e-"))
        await link.send(*(token(n, f"{n} ") for n in range(after + 1, 121)), end(121))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, unread_bytes_max=5_000, **QUICK) as jw:
        job = jw.run("Count", job_id=ID)
        await back.wait()
        assert await jw.subscribe("second-job-012345").text() == ""
        assert await job.text() == "".join(f"{n} " for n in range(1, 121))


@in_loop
async def test_aclose_unsubscribes_and_frees_the_id() -> None:
    left = asyncio.Event()

    async def script(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"))
        assert (await link.receive("unsubscribe"))["job_id"] == ID
        left.set()
        assert "after" not in await link.accept("subscribe")
        await link.send(token(1, "a"), token(2, "b"), end(3))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = jw.run("Hi", job_id=ID)
        await anext(job)
        await job.aclose()
        assert await events_of(job) == []
        with pytest.raises(ValueError, match="watches"):
            jw.subscribe(ID)  # not before the unsubscribe is sent
        await left.wait()
        assert await jw.subscribe(ID).text() == "ab"


@in_loop
async def test_a_job_closed_at_once_runs_all_the_same() -> None:
    async def script(link: Link) -> None:
        assert (await link.accept())["detach"]
        assert (await link.receive("unsubscribe"))["job_id"] == ID
        done.set()
        await link.wait_closed()

    done = asyncio.Event()
    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        await jw.run("Hi", job_id=ID, detach=True).aclose()
        await done.wait()


@in_loop
async def test_a_closed_job_can_be_cancelled() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.receive("unsubscribe")
        left.set()
        assert (await link.accept("cancel"))["job_id"] == ID
        await link.wait_closed()

    left = asyncio.Event()
    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = await jw.create("Hi", job_id=ID)
        await job.aclose()
        await left.wait()
        await job.cancel()
        await jw.aclose()
        await job.aclose()  # too late, and harmless


@in_loop
async def test_a_loop_left_early_can_be_taken_up() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), token(2, "b", index=1), token(3, "c"), end(4))
        await link.wait_closed()

    async with scripted_worker(script) as peer, connect(peer.url) as jw:
        job = jw.run("Hi", job_id=ID)
        async for _ in job:
            break
        assert await job.text() == "ac"


@in_loop
async def test_a_client_that_is_left_at_once_says_goodbye() -> None:
    async def script(link: Link) -> None:
        await link.wait_closed()
        codes.append(link.socket.close_code)
        done.set()

    codes: list[int | None] = []
    done = asyncio.Event()
    async with scripted_worker(script) as peer:
        async with connect(peer.url):
            pass
        await done.wait()
    assert codes == [1000]


@in_loop
async def test_closing_the_client_ends_every_wait() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.wait_closed()
        assert link.socket.close_code == 1000

    async with scripted_worker(script) as peer:
        async with connect(peer.url) as jw:
            job = await jw.create("Hi", job_id=ID)
            reading = asyncio.create_task(job.text())
            await asyncio.sleep(0)
        with pytest.raises(ConnectionFailed) as closed:
            await reading
        assert closed.value.code == "closed"
        with pytest.raises(ConnectionFailed):
            await jw.create("Hi")


@in_loop
async def test_a_request_too_large_is_refused_here_and_hurts_no_other() -> None:
    async def script(link: Link) -> None:
        await link.accept()
        await link.send(token(1, "a"), end(2))
        await link.wait_closed()

    async with (
        scripted_worker(script, hello={"limits": {"max_frame_bytes": 1000}}) as peer,
        connect(peer.url) as jw,
    ):
        with pytest.raises(Refused, match="frame_too_large"):
            await jw.create("x" * 1000)
        assert await jw.run("Hi", job_id=ID).text() == "a"


@in_loop
async def test_a_peer_that_speaks_no_json_is_a_cut() -> None:
    async def first(link: Link) -> None:
        await link.accept()
        await link.socket.send("not json")
        await link.wait_closed()

    async def second(link: Link) -> None:
        await link.accept()
        await link.send(end(1))
        await link.wait_closed()

    async with scripted_worker(first, second) as peer, connect(peer.url, **QUICK) as jw:
        assert await jw.run("Hi", job_id=ID).text() == ""
