"""What time does to jobs: deadlines, abandonment, retention."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from tests.jobs.scripted import ANN, LIMITS, READY, Stage
from worker.engines.base import Delta
from worker.errors import FieldError, InvalidParams, JobLost, JobNotFound
from worker.events import Cancelled, Expired, TopLogprob
from worker.jobs.correlation import Correlation
from worker.jobs.limits.principals import Principal
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.operations.status import Status
from worker.operations.worker_check import WorkerCheck

CORRELATION = Correlation("of-all-these-jobs")
ID = "a-job-to-wait-for"


def nothing() -> None:
    """A watcher that does nothing."""


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_deadline_ends_a_job_in_every_live_state(state: str) -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", deadline_ms=500)
    stage.jobs.watch(job, nothing)
    if state == "running":
        stage.start(job)
        stage.tokens(job, "a")
    stage.clock.advance(499)
    stage.jobs.sweep()
    assert job.state == state
    stage.clock.advance(1)
    stage.jobs.sweep()
    end = job.log.records[-1].event
    assert isinstance(end, Expired)
    assert (job.state, end.error.code) == ("expired", "deadline_exceeded")
    assert stage.broker.cancelled == [stage.broker.submitted[0].generation.lease]


def test_an_unwatched_job_is_abandoned_after_its_time() -> None:
    stage = Stage(orphan_ttl_s=60)
    job = stage.create(ID)
    stage.jobs.watch(job, nothing)
    stage.clock.advance(100_000)
    stage.jobs.sweep()
    assert job.state == "queued"
    stage.jobs.unwatch(job, nothing)
    stage.clock.advance(59_999)
    stage.jobs.sweep()
    assert job.state == "queued"
    stage.clock.advance(1)
    stage.jobs.sweep()
    end = job.log.records[-1].event
    assert isinstance(end, Cancelled)
    assert end.reason == "abandoned"


def test_a_job_that_nobody_ever_watched_is_abandoned_too() -> None:
    stage = Stage(orphan_ttl_s=60)
    job = stage.create(ID)
    stage.clock.advance(30_000)
    stage.jobs.touch(job)
    stage.clock.advance(59_999)
    stage.jobs.sweep()
    assert not job.ended
    stage.clock.advance(1)
    stage.jobs.sweep()
    assert job.state == "cancelled"


def test_one_of_two_watchers_is_enough() -> None:
    stage = Stage(orphan_ttl_s=1)
    job = stage.create(ID)
    heard: list[int] = []
    stage.jobs.watch(job, nothing)
    stage.jobs.watch(job, lambda: heard.append(job.log.tail))
    stage.jobs.unwatch(job, nothing)
    stage.clock.advance(5000)
    stage.jobs.sweep()
    assert job.state == "queued"


def test_a_detached_job_goes_on_alone() -> None:
    stage = Stage(orphan_ttl_s=1)
    job = stage.create(ID, prompt="Hi", detach=True)
    stage.clock.advance(3_600_000)
    stage.jobs.sweep()
    assert job.state == "queued"


def test_an_ended_job_is_kept_for_its_retention_and_then_unknown() -> None:
    stage = Stage(retention_s=300)
    job = stage.run(stage.create(ID, prompt="Hi"), "a")
    stage.clock.advance(299_999)
    stage.jobs.sweep()
    assert stage.jobs.get("ann", ID) is job
    stage.clock.advance(1)
    stage.jobs.sweep()
    with pytest.raises(JobNotFound):
        stage.jobs.get("ann", ID)
    request = Infer().parse({"prompt": "Hi"}, LIMITS, WrongFields())
    with pytest.raises(JobLost):
        stage.jobs.create(ANN, ID, request, resuming=True)
    again, found = stage.jobs.create(ANN, ID, request)
    assert not found
    assert again.log.epoch != job.log.epoch


def test_a_live_job_is_never_forgotten() -> None:
    stage = Stage(retention_s=0, retention_bytes_max=0, orphan_ttl_s=100_000)
    job = stage.create(ID)
    stage.start(job)
    stage.clock.advance(1e7)
    stage.jobs.sweep()
    assert stage.jobs.get("ann", ID) is job
    stage.tokens(job, "a")
    stage.finish(job)
    stage.jobs.sweep()
    assert stage.jobs.list("ann") == []


def test_memory_for_ended_logs_is_bounded() -> None:
    stage = Stage(retention_bytes_max=20_000)
    for _ in range(50):
        stage.run(stage.create(), *(["word "] * 10))
        stage.jobs.sweep()
        assert sum(job.kept_bytes for job in stage.jobs.list("ann")) <= 20_000
    assert stage.jobs.list("ann")


@pytest.mark.parametrize("likely", [0, 20])
def test_ended_jobs_take_about_the_memory_that_they_are_counted_for(likely: int) -> None:
    """Else a flood of long prompts, or of log-probabilities, would take many times what they may."""
    stage, jobs = Stage(), 30
    # Empties Python's lists of free tuples: those that are taken from there are not traced.
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(jobs):
            job = stage.create(prompt=f"{number:09999}", logprobs=likely)
            stage.start(job)
            for step in range(20):
                top = tuple(TopLogprob(1000 + n, f"{step} {n}", -step - n / 7) for n in range(likely))
                stage.send(Delta(job.choices[0].lease, (1000 + step,), f"{step} ", (-step / 7,), (top,)))
            stage.finish(job)
            stage.broker.submitted.clear()
            stage.seen.clear()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = sum(job.kept_bytes for job in stage.jobs.list("ann"))
    assert counted / 1.5 < taken < counted * 1.5


def status(stage: Stage, number: int) -> None:
    """A job that reports the state of the worker."""
    request = Status(lambda: READY).parse({"n": number}, LIMITS, WrongFields())
    stage.jobs.create(ANN, None, request, correlation=CORRELATION)


def worker_check(stage: Stage, number: int) -> None:
    """A job of the script that all such jobs share."""
    request = WorkerCheck().parse({"n": number}, LIMITS, WrongFields())
    stage.jobs.create(ANN, None, request, correlation=CORRELATION)


def cancelled(stage: Stage, number: int) -> None:
    """A job that never runs."""
    stage.jobs.cancel("ann", stage.create(prompt=f"{number:0999}", stop=["x" * 200], n=2).id)


def refused(stage: Stage, number: int) -> None:
    """A job whose prompt cannot be read, for five reasons."""
    wrong = tuple(FieldError(f"/messages/{place}/{number}", f"Expected {place} {number:099}") for place in range(5))
    job = stage.create()
    stage.jobs.on_refused(job.choices[0].lease, InvalidParams("No.", errors=wrong).problem())


def named(stage: Stage, number: int) -> None:
    """A job whose client chose long names for everything."""
    correlation, name = Correlation(f"{number:0128}", f"{number:0128}"), f"web/{number:099}"
    request = Infer().parse({"prompt": "Hi"}, LIMITS, WrongFields())
    job, _ = stage.jobs.create(Principal(name=name, key="web"), f"{number:064}", request, correlation=correlation)
    stage.jobs.cancel(name, job.id)


def emoji(stage: Stage, number: int) -> None:
    """A job whose text takes four bytes a character."""
    stage.run(stage.create(prompt=str(number)), *(f"{place}" + "\N{ROCKET}" * 49 for place in range(10)))


@pytest.mark.parametrize("make", [status, worker_check, cancelled, refused, named, emoji])
def test_short_jobs_take_the_memory_that_they_are_counted_for(make: Callable[[Stage, int], None]) -> None:
    """They are many: what each costs besides its log is most of it."""
    stage, jobs = Stage(jobs_per_account_max=1000, queue_jobs_max=1000, retention_bytes_max=1 << 30), 400
    make(stage, 0)
    before = stage.jobs._registry._retention.bytes
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(jobs):
            make(stage, 1000 + number)
            stage.broker.submitted.clear()
            stage.broker.cancelled.clear()
            stage.seen.clear()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = stage.jobs._registry._retention.bytes - before
    assert counted / 1.5 < taken < counted * 1.5


def test_cancel_all_ends_every_live_job() -> None:
    stage = Stage()
    jobs = [stage.create() for _ in range(3)]
    stage.run(jobs[0], "a")
    idle: list[str] = []
    stage.jobs.drain(lambda: idle.append("idle"))
    stage.jobs.cancel_all("shutdown")
    assert [job.state for job in jobs] == ["completed", "cancelled", "cancelled"]
    assert idle == ["idle"]
