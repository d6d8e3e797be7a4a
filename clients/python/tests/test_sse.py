"""Jobs over HTTP and SSE: cuts, resets, refusals, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobwire_client import ConnectionFailed, End, Job, JobFailed, Narration, Refused, Reset, Token, connect
from scripted import Exchange, scripted_http
from steps import HEARTBEAT, ID, QUICK, answers, created, end, in_loop, sse, streams, token


@asynccontextmanager
async def job_at(url: str, prompt: str | None = None, job_id: str = ID, **more: Any) -> AsyncIterator[Job]:
    """A job over SSE: a new one, or without a prompt one that exists."""
    options: dict[str, Any] = {
        name: more.pop(name) for name in ("token", "retry_timeout_s", "unread_bytes_max") if name in more
    }
    async with connect(url, transport="sse", **QUICK, **options) as jw:
        assert jw.transport == "sse"
        yield jw.subscribe(job_id, **more) if prompt is None else jw.run(prompt, job_id=job_id, **more)


@in_loop
async def test_one_job_from_post_to_end() -> None:
    note = {"type": "narration", "job_id": ID, "cursor": "e-1", "action": "queued", "human": "First."}
    stream = sse(note, token(2, "Hel"), {"type": "weather"}, token(3, "lo"), end(4, finish_reason="stop"))
    async with (
        scripted_http(created, streams(b"retry: 1000\n\n", HEARTBEAT, stream)) as (url, exchanges),
        job_at(url, "Hi", token="key", max_tokens=5) as job,
    ):
        narration, *tokens, last = [event async for event in job]
        assert isinstance(narration, Narration)
        assert narration.human == "First."
        assert "".join(event.text for event in tokens if isinstance(event, Token)) == "Hello"
        assert isinstance(last, End)
        assert (last.status, await job.text(), job.cursor) == ("completed", "Hello", "e-4")
    post, get = exchanges
    assert post.body == {"job_id": ID, "prompt": "Hi", "max_tokens": 5}
    assert (get.method, get.path) == ("GET", f"/v1/jobs/{ID}/stream")
    assert get.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in get.headers
    assert post.headers["accept"] == "application/json"
    assert post.headers["authorization"] == get.headers["authorization"] == "Bearer key"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@in_loop
async def test_lines_end_in_lf_or_crlf_and_nowhere_else(newline: str) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\rg\U0001f469\u200d\U0001f680"
    data = sse(token(1, text), end(2), newline=newline)
    pieces = [data[i : i + 1] for i in range(len(data))]  # cut in characters and in line ends
    async with scripted_http(created, streams(*pieces)) as (url, _), job_at(url, "Hi") as job:
        assert await job.text() == text


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_text_is_exact_wherever_the_stream_is_cut(data: st.DataObject) -> None:
    log = [token(n, f"{n} ") for n in range(1, 11)] + [end(11)]
    cuts = data.draw(st.lists(st.integers(0, 200), max_size=5))

    async def serve_log(exchange: Exchange) -> None:
        if exchange.method == "POST":
            return await created(exchange)
        at = int(exchange.headers.get("last-event-id", "e-0").removeprefix("e-"))
        rest = sse(*log[at:])
        return await exchange.stream(rest[: cuts.pop()] if cuts else rest)

    @in_loop
    async def case() -> None:
        async with scripted_http(*[serve_log] * 7) as (url, _), job_at(url, "Count") as job:
            assert await job.text() == "".join(f"{n} " for n in range(1, 11))

    case()


@in_loop
async def test_a_post_without_an_answer_is_repeated_with_the_same_id() -> None:
    async def cut(_: Exchange) -> None:
        """Close the connection without an answer."""

    async with scripted_http(cut, created, streams(sse(end(1)))) as (url, exchanges), job_at(url, "Hi") as job:
        assert await job.text() == ""
    assert exchanges[0].body == exchanges[1].body


@in_loop
async def test_204_ends_it() -> None:
    async with scripted_http(answers(204)) as (url, exchanges), job_at(url, after="e-9") as job:
        assert [event async for event in job] == []
    assert exchanges[0].headers["last-event-id"] == "e-9"
    assert exchanges[0].path == f"/v1/jobs/{ID}/stream"


@in_loop
async def test_a_prompt_with_a_cursor_resumes_and_never_creates() -> None:
    async with (
        scripted_http(streams(sse(token(3, "c"), end(4)))) as (url, exchanges),
        job_at(url, "Hi", job_id=ID, after="e-2") as job,
    ):
        assert await job.text() == "c"
    assert (exchanges[0].method, exchanges[0].headers["last-event-id"]) == ("GET", "e-2")


@in_loop
async def test_reset_starts_the_text_over() -> None:
    reset = sse({"type": "accepted", "reset": True}, {**token(1, "anew"), "cursor": "f-1"}, {**end(2), "cursor": "f-2"})
    async with (
        scripted_http(created, streams(sse(token(1, "lost"))), streams(reset)) as (url, _),
        job_at(url, "Hi") as job,
    ):
        assert [type(event) async for event in job][-3:] == [Reset, Token, End]
        assert await job.text() == "anew"


@pytest.mark.parametrize(("status", "code"), [(404, "job_not_found"), (410, "job_lost"), (401, "unauthorized")])
@in_loop
async def test_a_refused_stream_raises(status: int, code: str) -> None:
    async with scripted_http(answers(status, code)) as (url, _):
        with pytest.raises(Refused, match=code) as refused:
            async with job_at(url) as job:
                await job.text()
        assert (refused.value.code, refused.value.status) == (code, status)


@in_loop
async def test_a_refused_post_raises_and_says_when_to_retry() -> None:
    async def busy(exchange: Exchange) -> None:
        problem = {"code": "queue_full", "status": 429, "detail": "Full.", "retriable": True, "retry_after_ms": 900}
        await exchange.answer_json(429, problem, Retry_After="1")

    async with scripted_http(busy) as (url, _):
        with pytest.raises(Refused, match="Full") as refused:
            async with job_at(url, "Hi") as job:
                await job.text()
        assert (refused.value.code, refused.value.retry_after_ms) == ("queue_full", 900)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@in_loop
async def test_a_proxy_that_has_no_worker_for_now_is_waited_for(status: int) -> None:
    scripts = (created, streams(sse(token(1, "a"))), answers(status, Retry_After="0"), streams(sse(end(2))))
    async with scripted_http(*scripts) as (url, _), job_at(url, "Hi") as job:
        assert await job.text() == "a"


@in_loop
async def test_an_outage_is_bounded_in_time() -> None:
    stopped = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        await stopped.wait()

    async with AsyncExitStack() as stack:
        async with scripted_http(created, stream) as (url, _):
            job = await stack.enter_async_context(job_at(url, "Hi", retry_timeout_s=0.2))
            assert isinstance(await anext(job), Token)
        stopped.set()
        with pytest.raises(ConnectionFailed) as failed:
            await job.text()
        assert failed.value.code == "connection_failed"


@in_loop
async def test_a_read_that_was_given_up_can_be_taken_up() -> None:
    """A timeout around a read spends the stream under it; reading on must not look like the end of the job."""
    given_up = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        await given_up.wait()

    async def second(exchange: Exchange) -> None:
        assert exchange.headers["last-event-id"] == "e-1"
        await exchange.stream(sse(token(2, "b"), end(3)))

    async with scripted_http(created, slow, second) as (url, _), job_at(url, "Hi") as job:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await job.text()
        given_up.set()
        assert await job.text() == "ab"


@in_loop
async def test_silence_is_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobwire_client.sse.HEARTBEAT_S", 0.05)
    silenced = asyncio.Event()

    async def silent(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        await silenced.wait()

    async def second(exchange: Exchange) -> None:
        silenced.set()
        assert exchange.headers["last-event-id"] == "e-1"
        await exchange.stream(sse(end(2)))

    async with scripted_http(created, silent, second) as (url, _), job_at(url, "Hi") as job:
        assert await job.text() == "a"


@in_loop
async def test_a_failed_job_raises() -> None:
    problem = {"code": "engine_failed", "detail": "It broke."}
    async with scripted_http(created, streams(sse(end(1, "failed", error=problem)))) as (url, _):
        with pytest.raises(JobFailed, match="It broke"):
            async with job_at(url, "Hi") as job:
                await job.text()


@in_loop
async def test_cancel_is_a_delete() -> None:
    async def deleted(exchange: Exchange) -> None:
        assert (exchange.method, exchange.path) == ("DELETE", f"/v1/jobs/{ID}")
        await exchange.answer_json(200, {"job_id": ID, "status": "cancelled"})
        cancelled.set()

    async def stream(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        await cancelled.wait()
        await exchange.send(sse(end(2, "cancelled")))
        await exchange.finish()

    cancelled = asyncio.Event()
    async with scripted_http(created, stream, deleted) as (url, _), job_at(url, "Hi") as job:
        await anext(job)
        await job.cancel()
        last = await anext(job)
        assert isinstance(last, End)
        assert last.status == "cancelled"
        await job.cancel()  # after the end there is nothing to ask


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
async def test_aclose_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.stream(sse(token(1, "a")))
        with pytest.raises(ConnectionError):
            while True:
                await exchange.send(HEARTBEAT)
        closed.set()

    async with (
        scripted_http(created, stream) as (url, _),
        job_at(url, "Hi") as job,
    ):
        await anext(job)
        await job.aclose()
        await closed.wait()
        assert [event async for event in job] == []
