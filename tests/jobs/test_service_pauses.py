"""A sequence gives its slot back for a while: the log tells it, and nothing is told twice."""

from __future__ import annotations

from tests.jobs.scripted import Stage
from tests.jobs.test_service import kinds
from worker.engines.base import Paused
from worker.events import Finished, Preempted
from worker.jobs.job import Job


def pause(stage: Stage, job: Job, index: int = 0, produced: int = 2) -> None:
    stage.send(Paused(job.choices[index].lease, produced))


def test_a_paused_job_waits_again_and_goes_on_under_the_same_lease() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", max_tokens=9)
    stage.start(job, prompt_tokens=3, cached_tokens=1)
    stage.tokens(job, "one ", "two ")
    lease = job.choices[0].lease
    pause(stage, job)
    assert (job.state, kinds(job)[-1]) == ("queued", "Preempted")
    reason = job.log.records[-1].event
    assert isinstance(reason, Preempted) and "KV cache" in reason.reason
    stage.place(job, 1)
    stage.start(job, prompt_tokens=3, cached_tokens=3)
    stage.tokens(job, "three")
    stage.finish(job)
    assert kinds(job)[-6:] == ["Preempted", "Queued", "Admitted", "Token", "Note", "Finished"]
    assert (job.text(), job.choices[0].lease) == ("one two three", lease)
    assert len(stage.broker.submitted) == 1 and job.log.attempt == 1
    end = job.log.records[-1].event
    # What it found of itself in the cache is no help that the client was given.
    assert isinstance(end, Finished) and (end.usage.cached_tokens, end.usage.completion_tokens) == (1, 3)


def test_a_job_waits_when_none_of_its_choices_holds_a_slot() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=2)
    stage.start(job)
    stage.tokens(job, "a", index=0)
    pause(stage, job, index=0)
    assert job.state == "running" and "Preempted" not in kinds(job)
    pause(stage, job, index=1)
    assert job.state == "queued"
    stage.start(job)
    assert job.state == "running"
    stage.finish(job, index=0)
    pause(stage, job, index=1)
    assert job.state == "queued"
    stage.start(job)
    stage.finish(job, index=1)
    assert job.state == "completed"


def test_a_paused_job_can_be_cancelled() -> None:
    stage = Stage()
    job = stage.create()
    stage.start(job)
    pause(stage, job)
    stage.jobs.cancel("ann", job.id)
    assert job.state == "cancelled" and stage.broker.cancelled == [job.choices[0].lease]


def test_the_engine_dies_while_a_job_is_paused_and_the_job_is_blamed_for_nothing() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", max_tokens=9)
    stage.start(job)
    stage.tokens(job, "one ", "two ")
    pause(stage, job)
    stage.jobs.on_lost("killed")
    assert job.deaths == 0 and stage.broker.submitted[-1].generation.generated == (4, 4)
    stage.start(job)
    stage.tokens(job, "three")
    stage.finish(job)
    assert job.text() == "one two three"


def test_prefill_is_told_anew_after_a_pause() -> None:
    stage = Stage()
    job = stage.create()
    stage.start(job)
    stage.prefill(job, 50, 100)
    stage.prefill(job, 100, 100)
    pause(stage, job)
    stage.start(job)
    stage.prefill(job, 60, 120)
    assert kinds(job)[-2:] == ["Admitted", "Progress"]
