"""The client without asyncio: the same events and errors, from any number of threads."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from jobwire_client import ConnectionFailed, End, Event, JobCancelled, Refused, SyncJob, Token, connect, connect_sync
from scripted import Peer, Script, scripted_worker
from steps import ID, QUICK, cut_after, end, go_on_after_a, token

PATIENCE_S = 20.0


@contextmanager
def worker(*scripts: Script, **more: Any) -> Iterator[str]:
    """A scripted worker in a loop and a thread of its own; yield its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_S)

    serving = scripted_worker(*scripts, **more)
    try:
        yield wait(serving.__aenter__()).url
        wait(serving.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def text_of(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


async def counts(peer: Peer) -> None:
    """Accept any number of jobs, and count to three for each."""
    while True:
        job_id = (await peer.accept())["job_id"]
        await peer.send(*(token(n, f"{job_id[-2:]}:{n} ", job_id) for n in range(1, 4)), end(4, job_id=job_id))


def test_one_job_from_create_to_end() -> None:
    with worker(counts) as url, connect_sync(url, "key", **QUICK) as jw:
        job = jw.create("Count", job_id=ID)
        assert job.accepted["state"] == "running"
        events = list(job)
        assert text_of(events) == "ef:1 ef:2 ef:3 "
        assert isinstance(events[-1], End)
        assert (job.end, job.cursor, job.text(), job.texts()) == (events[-1], "e-4", "ef:1 ef:2 ef:3 ", [job.text()])
        assert list(job) == []
        assert (jw.transport, jw.hello["protocol"]) == ("websocket", "jobwire.v1")


def test_many_jobs_from_many_threads_share_a_connection() -> None:
    with worker(counts) as url, connect_sync(url) as jw:

        def count(n: int) -> str:
            return text_of(jw.run("Count", job_id=f"0123456789abcdef-{n}"))

        with ThreadPoolExecutor(16) as threads:
            texts = list(threads.map(count, range(10, 74)))
        assert texts == [f"{n}:1 {n}:2 {n}:3 " for n in range(10, 74)]
        assert len(threads_named("jobwire")) == 1


def test_a_cut_is_resumed() -> None:
    first = cut_after(token(1, "a"))

    with worker(first, go_on_after_a) as url, connect_sync(url, **QUICK) as jw:
        assert jw.run("Hi", job_id=ID).text() == "ab"


def test_cancel_update_and_errors_are_as_without_threads() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        assert (await peer.accept("update", queue={"position": 1}))["priority"] == 9
        await peer.accept("cancel")
        await peer.send(end(1, "cancelled"))
        await peer.refuse(await peer.receive("create"), "invalid_params", 422)
        await peer.accept("subscribe")
        await peer.receive("unsubscribe")
        await peer.wait_closed()

    with worker(script) as url, connect_sync(url) as jw:
        job = jw.run("Hi", job_id=ID)
        assert job.update(priority=9)["queue"] == {"position": 1}
        job.cancel()
        with pytest.raises(JobCancelled):
            job.text()
        with pytest.raises(Refused, match="invalid_params"):
            jw.create("Hi")
        with jw.subscribe("second-job-012345") as other:
            pass
        assert list(other) == []


def test_closing_the_client_ends_every_wait_and_the_thread() -> None:
    reading = threading.Event()
    seen: list[BaseException] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"))
        await peer.wait_closed()
        assert peer.socket.close_code == 1000

    def read() -> None:
        try:
            for _ in job:
                reading.set()
        except BaseException as error:
            seen.append(error)

    with worker(script) as url:
        with connect_sync(url) as jw:
            job = jw.run("Hi", job_id=ID)
            reader = threading.Thread(target=read)
            reader.start()
            assert reading.wait(PATIENCE_S)
        reader.join(PATIENCE_S)
        assert [getattr(error, "code", error) for error in seen] == ["closed"]
        for call in (lambda: jw.run("Hi"), job.text, job.cancel, job.__next__):
            with pytest.raises(ConnectionFailed, match="closed"):
                call()
        jw.close()  # again, and harmless
    assert threads_named("jobwire") == []


def test_a_client_that_cannot_connect_leaves_no_thread() -> None:
    with pytest.raises(ConnectionFailed):
        connect_sync("http://127.0.0.1:1").__enter__()
    assert threads_named("jobwire") == []


def test_a_client_is_opened_by_with_alone() -> None:
    with pytest.raises(ConnectionFailed):
        connect_sync("http://127.0.0.1:1").run("Hi")


@pytest.mark.parametrize("waits", [next, SyncJob.text])
def test_an_interrupted_wait_can_be_taken_up(waits: Callable[[SyncJob], object]) -> None:
    """What Ctrl-C does: the wait ends with KeyboardInterrupt, and nothing is lost."""
    go_on = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(token(1, "a"))
        await asyncio.to_thread(go_on.wait)
        await peer.send(token(2, "b"), end(3))
        await peer.wait_closed()

    with worker(script) as url, connect_sync(url) as jw:
        job = jw.run("Hi", job_id=ID)
        assert isinstance(next(job), Token)
        main = threading.main_thread().ident
        assert main == threading.get_ident()
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
            waits(job)
        go_on.set()
        assert text_of(job) == "b"
        assert job.text() == "ab"


def test_a_slow_reader_holds_the_worker_back() -> None:
    """With a window of one, the worker hears of each frame only when it is read."""
    acknowledged: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        for n in range(1, 4):
            await peer.send(token(n, f"{n}"))
            acknowledged.append((await peer.receive("ack"))["cursor"])
        await peer.send(end(4))
        await peer.wait_closed()

    with worker(script) as url, connect_sync(url, window=1) as jw:
        job = jw.run("Hi", job_id=ID)
        assert [(next(job), job.cursor)[1] for _ in range(3)] == ["e-1", "e-2", "e-3"]
        assert job.text() == "123"
    assert acknowledged == ["e-1", "e-2", "e-3"]


def test_it_may_be_used_where_a_loop_runs() -> None:
    async def both(url: str) -> list[str]:
        async with connect(url) as jw:
            with connect_sync(url) as sync:
                there = await asyncio.to_thread(sync.run("Count", job_id=f"{ID}-22").text)
            return [there, await jw.run("Count", job_id=f"{ID}-33").text()]

    with worker(counts) as url:
        assert asyncio.run(both(url)) == ["22:1 22:2 22:3 ", "33:1 33:2 33:3 "]
