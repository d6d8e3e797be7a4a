"""The Python client against the real worker, directly and behind a proxy that cuts connections at any byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any, Literal, TypeAlias

import httpx
import pytest
from jobwire_client import (
    Client,
    ConnectionFailed,
    End,
    Event,
    Job,
    JobCancelled,
    LikelyToken,
    Narration,
    Options,
    Params,
    Refused,
    Reset,
    Token,
    Usage,
    connect,
    connect_sync,
)

from tests.clients.conftest import CLIENTS
from tests.clients.cutting import cutting
from tests.support.server import Server, serving

COUNT: dict[str, Any] = {"temperature": 0, "max_tokens": 200}
LONG: dict[str, Any] = {"temperature": 0, "max_tokens": 1500}
Transport: TypeAlias = Literal["websocket", "sse"]
TRANSPORTS: tuple[Transport, ...] = ("websocket", "sse")
JSON = {"Accept": "application/json"}
QUICK: dict[str, Any] = {"backoff_s": (0.005, 0.05)}


async def text_at(worker_url: str, job: Job) -> str:
    """The text of a job as the worker has it."""
    async with httpx.AsyncClient(headers=JSON) as http:
        return str((await http.get(f"{worker_url}/v1/jobs/{job.id}")).json()["text"])


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


async def test_a_job_tells_its_text_its_narration_and_its_end(worker_url: str) -> None:
    async with connect(worker_url) as jw:
        job = await jw.create("Count from 1 to 60", **COUNT)
        events = [event async for event in job]
        assert text_of(events).startswith("1 2 3 4 5")
        assert text_of(events) == await text_at(worker_url, job) == await job.text()
        last = events[-1]
        assert isinstance(last, End)
        assert last.status == "completed"
        assert last.usage["completion_tokens"] == sum(event.n for event in events if isinstance(event, Token))
        assert "admitted" in [event.action for event in events if isinstance(event, Narration)]


async def test_websocket_and_sse_tell_the_same(worker_url: str) -> None:
    async with connect(worker_url) as jw, connect(worker_url, transport="sse") as over_sse:
        text = await jw.run("Count from 1 to 60", **COUNT).text()
        assert await over_sse.run("Count from 1 to 60", **COUNT).text() == text
        assert (jw.transport, over_sse.transport) == ("websocket", "sse")


async def test_sixty_four_jobs_on_one_connection(worker_url: str) -> None:
    async with connect(worker_url) as jw:
        jobs = [jw.run(f"Count from {n} to 99", temperature=0, max_tokens=40) for n in range(1, 65)]
        texts = await asyncio.gather(*(job.text() for job in jobs))
        assert texts == [await text_at(worker_url, job) for job in jobs]
        assert len(set(texts)) > 1


@pytest.mark.parametrize("options", [{}, {"unread_bytes_max": 1_000}, {"window": 1}, {"window": 3}], ids=str)
@pytest.mark.parametrize("seed", range(3))
async def test_a_websocket_cut_anywhere_loses_and_doubles_nothing(worker_url: str, seed: int, options: Options) -> None:
    """Whether jobs are read as they come, or put down meanwhile, or sent as they are read."""
    random = Random(seed)
    cuts = [1_500, *(random.randrange(5_000) for _ in range(12))]  # the first connection must stand
    with cutting(worker_url, cuts) as url:
        async with connect(url, **options, **QUICK) as jw:
            jobs = [jw.run("Count from 1 to 60", **COUNT) for _ in range(3)]
            texts = [await job.text() for job in jobs]
        assert texts == [await text_at(worker_url, job) for job in jobs]


@pytest.mark.parametrize("seed", range(4))
async def test_a_stream_cut_anywhere_loses_and_doubles_nothing(worker_url: str, seed: int) -> None:
    random = Random(seed)
    with cutting(worker_url, [random.randrange(4_000) for _ in range(10)]) as url:
        async with connect(url, transport="sse", **QUICK) as jw:
            jobs = [jw.run("Count from 1 to 60", **COUNT) for _ in range(2)]
            texts = await asyncio.gather(*(job.text() for job in jobs))
        assert texts == [await text_at(worker_url, job) for job in jobs]


async def test_a_job_goes_on_over_the_other_transport_and_back(worker_url: str) -> None:
    seen: list[Event] = []
    async with connect(worker_url) as jw, connect(worker_url, transport="sse") as over_sse:
        job = jw.run("Count from 1 to 60", **COUNT)
        hops = 0
        while job.end is None:
            async for event in job:
                seen.append(event)
                if isinstance(event, Token):
                    break
            await job.aclose()
            if job.end is None:
                hops += 1
                job = await _hop(over_sse if hops % 2 else jw, job)
        assert text_of(seen) == await text_at(worker_url, job)
        assert hops > 2


async def _hop(elsewhere: Client, job: Job) -> Job:
    """The same job at the same place; a client has an id to itself until it has told the worker to stop."""
    while True:
        with contextlib.suppress(ValueError):
            return elsewhere.subscribe(job.id, after=job.cursor)
        await asyncio.sleep(0)


async def test_a_second_reader_joins_in_the_middle_and_a_third_comes_late(worker_url: str) -> None:
    async with connect(worker_url) as jw, connect(worker_url) as elsewhere:
        job = jw.run("Count from 1 to 60", **COUNT)
        head: list[Event] = []
        while not text_of(head):
            head.append(await anext(job))
        tail = await elsewhere.subscribe(job.id, after=job.cursor).text()
        assert await job.text() == text_of(head) + tail
        assert await elsewhere.subscribe(job.id).text() == text_of(head) + tail


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_cancel_ends_the_job(worker_url: str, transport: Transport) -> None:
    async with connect(worker_url, transport=transport) as jw:
        job = jw.run("Count from 1 to 99", **LONG)
        while not isinstance(await anext(job), Token):
            pass
        await job.cancel()
        with pytest.raises(JobCancelled) as cancelled:
            await job.text()
        assert cancelled.value.text == await text_at(worker_url, job)
        await job.cancel()


async def test_the_same_id_is_the_same_job(worker_url: str) -> None:
    job_id = "idempotent-0123456789"
    async with connect(worker_url) as jw, connect(worker_url) as elsewhere:
        first = await jw.create("Count from 1 to 20", job_id=job_id, **COUNT)
        again = await elsewhere.create("Count from 1 to 20", job_id=job_id, **COUNT)
        assert again.accepted["replayed"]
        assert await first.text() == await again.text()
        with pytest.raises(Refused) as refused:
            await elsewhere.create("Count from 1 to 21", job_id=job_id, **COUNT)
        assert (refused.value.code, refused.value.status) == ("idempotency_mismatch", 422)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_wrong_is_said(worker_url: str, transport: Transport) -> None:
    async with connect(worker_url, transport=transport) as jw:
        with pytest.raises(Refused) as refused:
            await jw.create("Hi", top_p=7)
        assert (refused.value.code, refused.value.status) == ("invalid_params", 422)
        assert refused.value.problem["errors"][0]["pointer"] == "/top_p"
        with pytest.raises(Refused, match="job_not_found"):
            await jw.subscribe("no-such-job-anywhere").text()


async def test_a_job_that_the_worker_lost_is_not_run_again(worker_url: str) -> None:
    async with connect(worker_url) as jw:
        with pytest.raises(Refused, match="job_lost"):
            await jw.create("Hi", job_id="never-run-here-0123456789", after="lost-1")


async def test_a_job_left_unread_is_whole_when_it_is_read(worker_url: str) -> None:
    async with connect(worker_url, unread_bytes_max=2_000) as jw:
        unread = await jw.create("Count from 1 to 60", **COUNT)
        await jw.run("Count from 1 to 60", **COUNT).text()
        assert await unread.text() == await text_at(worker_url, unread)


async def test_with_a_window_the_worker_waits_for_the_reader(worker_url: str) -> None:
    """The job runs to its end, but no more than the window is sent: the rest comes merged when it is asked for."""
    async with connect(worker_url, window=2) as jw:
        job = await jw.create("Count from 1 to 60", **COUNT)
        async with connect(worker_url) as elsewhere:
            text = await elsewhere.subscribe(job.id).text()
        tokens = [event async for event in job if isinstance(event, Token)]
        assert text_of(list(tokens)) == text
        assert len(tokens) <= 6, "most of it was sent before anybody read"


async def test_choices_have_their_own_texts_and_tokens_their_likelihoods(worker_url: str) -> None:
    async with connect(worker_url) as jw:
        job = jw.run(
            "Tell me a story about a fox", n=2, seed=7, temperature=1, max_tokens=20, deadline_ms=60_000, coalesce_ms=5,
            include=["ids", "logprobs", "top_logprobs"], logprobs=3,
        )  # fmt: skip
        counts = [0, 0]
        async for event in job:
            if isinstance(event, Token):
                assert len(event.ids) == len(event.logprobs) == len(event.top_logprobs) == event.n
                assert all(len(likely) == 3 for likely in event.top_logprobs)
                counts[event.index] += event.n
        assert counts == [20, 20]
        first, second = await job.texts()
        assert first != second


async def test_priority_moves_a_job_that_waits() -> None:
    with serving("--slots", "1") as server:
        async with connect(server.url) as jw:
            await jw.create("Count from 1 to 99", **LONG)
            waiting = [await jw.create(f"Count from {n} to 99", **COUNT) for n in range(3)]
            await waiting[2].update(priority=9)
            await waiting[0].update(priority=0)
            order: list[int] = []

            async def finish(n: int) -> None:
                await waiting[n].text()
                order.append(n)

            await asyncio.gather(*map(finish, range(3)))
            assert order == [2, 1, 0]


def test_many_jobs_from_threads_without_asyncio(worker_url: str) -> None:
    with connect_sync(worker_url) as jw, ThreadPoolExecutor(16) as threads:

        def count(n: int) -> tuple[str, str]:
            job = jw.run(f"Count from {n} to 99", temperature=0, max_tokens=40)
            return text_of(list(job)), job.id

        for text, job_id in threads.map(count, range(1, 33)):
            assert text == httpx.get(f"{worker_url}/v1/jobs/{job_id}", headers=JSON).json()["text"]


async def test_a_graceful_restart_finishes_jobs_and_new_ones_wait_for_the_next_worker() -> None:
    old_worker = Server().wait_ready()
    try:
        async with connect(old_worker.url, **QUICK) as jw:
            old = await jw.create("Count from 1 to 99", **LONG)
            while not isinstance(await anext(old), Token):
                pass
            old_worker.process.terminate()
            stopping = asyncio.create_task(asyncio.to_thread(old_worker.process.wait))
            new = await _create_when_the_worker_takes_it(jw)
            text = await old.text()
            assert await stopping == 0
            with serving("--port", str(old_worker.port)):
                assert await new.text() == "1 2 3 4 5"
                assert await jw.run("Count from 1 to 99", **LONG).text() == text
    finally:
        old_worker.stop()


async def _create_when_the_worker_takes_it(jw: Client) -> Job:
    """A job that no worker has taken yet; those that meet the old one before its goodbye are refused."""
    while True:
        job = jw.run("Count from 1 to 5")
        try:
            await asyncio.wait_for(job.wait_accepted(), 0.5)
        except TimeoutError:
            return job
        except Refused as refused:
            assert refused.code == "draining"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_tokens_that_expire_are_replaced_in_time(transport: Transport, caplog: pytest.LogCaptureFixture) -> None:
    """Each token is good for four seconds; over a WebSocket the connection outlives several of them."""
    caplog.set_level("INFO", "jobwire_client")
    asked = 0
    with serving("--api-key", "secret") as server:

        def token() -> str:
            nonlocal asked
            asked += 1
            headers = {"Authorization": "Bearer secret"}
            return str(server.post("/v1/tokens", {"ttl_s": 4}, headers=headers).json()["token"])

        async with connect(server.url, token, transport=transport) as jw:
            started = time.monotonic()
            while time.monotonic() < started + 8:
                job = jw.run("Count from 1 to 60", **COUNT)
                assert await job.text()
        assert asked >= 3
        assert not [record for record in caplog.records if record.name.startswith("jobwire_client")]


def test_what_a_job_may_ask_for_is_what_the_worker_takes() -> None:
    """The types are the protocol's, which are generated."""
    generated = (CLIENTS / "javascript" / "protocol.d.ts").read_text(encoding="utf-8")

    def fields(name: str) -> set[str]:
        (body,) = re.findall(rf"^export interface {name} {{\n(.*?)^}}", generated, re.MULTILINE | re.DOTALL)
        return set(re.findall(r"^  (\w+)\??: ", body, re.MULTILINE))

    elsewhere = {"type", "job_id", "after", "ref", "prompt", "messages", "model"}
    assert set(Params.__annotations__) - {"model"} == fields("CreateFrame") - elsewhere
    assert set(Usage.__annotations__) == fields("Usage")
    assert set(LikelyToken.__annotations__) == fields("LikelyToken")
    assert set(Token.__match_args__) == fields("TokenFrame") - {"type"}
    assert set(End.__match_args__) == fields("EndFrame") - {"type"}
    assert set(Narration.__match_args__) - {"fields"} <= fields("NarrationFrame")


async def test_a_key_and_a_worker_that_forgets() -> None:
    """A wrong key is said at once. A worker that comes back without the job never runs it again by itself."""
    with serving("--api-key", "secret") as first, serving("--api-key", "secret") as second:
        for token in ("wrong", None):
            with pytest.raises(ConnectionFailed) as failed:
                await connect(first.url, token).__aenter__()
            assert failed.value.code == "unauthorized"
        await _lose_the_worker(first, second)


async def _lose_the_worker(first: Server, second: Server) -> None:
    """One job is lost; the other one was created again by somebody else, and is told from its start."""
    async with contextlib.AsyncExitStack() as stack:
        with cutting(first.url, []) as url:
            jw = await stack.enter_async_context(connect(url, "secret", **QUICK))
            jobs = [jw.run("Count from 1 to 99", **LONG) for _ in range(2)]
            for job in jobs:
                while not isinstance(await anext(job), Token):
                    pass
            port = int(url.rpartition(":")[2])
        elsewhere = await stack.enter_async_context(connect(second.url, "secret"))
        again = await elsewhere.create("Count from 1 to 99", job_id=jobs[1].id, **LONG)
        with cutting(second.url, [], port) as _:
            with pytest.raises(Refused, match="job_lost"):
                await jobs[0].text()
            events = [event async for event in jobs[1]]
            assert [event for event in events if isinstance(event, Reset)]
            assert await jobs[1].text() == await again.text()
