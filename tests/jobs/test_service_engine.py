"""The engine dies, lies late, or cannot be had: no token is lost, none is doubled, and the guilty job fails alone."""

from __future__ import annotations

from tests.jobs.scripted import STATS, Stage
from tests.jobs.test_service import kinds
from worker.brokers.base import EngineState
from worker.engines.base import Broke, Delta
from worker.errors import EngineFailed, ModelError
from worker.events import Failed, Finished, Note, Resumed, Token
from worker.jobs.handing import SOLO_AFTER_DEATHS
from worker.jobs.job import Job
from worker.scheduler.works import Batch, Started


def error_code(job: Job) -> str:
    """Return the code of the error that a job failed with."""
    end = job.log.records[-1].event
    assert isinstance(end, Failed)
    return end.error.code


def test_a_lost_job_goes_on_from_its_own_tokens_under_a_new_lease() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", seed=5, max_tokens=9)
    stage.start(job)
    stage.tokens(job, "one ", "two ", "three ")
    old = job.choices[0].lease
    stage.jobs.on_lost("the engine was killed by signal 9")
    work = stage.broker.submitted[-1]
    assert work.generation.lease == job.choices[0].lease != old
    assert work.generation.generated == (4, 4, 6)
    assert (work.generation.max_tokens, work.generation.sampling.seed, work.solo) == (9, 5, False)
    assert kinds(job)[-2:] == ["Note", "Resumed"]
    assert (job.state, job.log.attempt) == ("queued", 2)
    note = job.log.records[-2].event
    assert isinstance(note, Note)
    assert note.human == "The engine was killed by signal 9; starting it again"
    stage.start(job)
    stage.tokens(job, "four")
    stage.finish(job)
    assert job.text() == "one two three four"
    assert job.state == "completed"


def test_a_stale_lease_is_not_heard() -> None:
    stage = Stage()
    job = stage.create()
    stage.start(job)
    stage.tokens(job, "a")
    stale = job.choices[0].lease
    stage.jobs.on_lost("killed")
    tail = job.log.tail
    late_error = EngineFailed("late").problem()
    late = (Started(stale, 3, 0), Delta(stale, (1,), "late"), Delta(stale, finish="stop"), Broke(stale, late_error))
    stage.jobs.on_batch(Batch(late, STATS))
    assert (job.log.tail, job.state) == (tail, "queued")


def test_a_suspect_is_tried_alone_until_it_has_shown_a_token() -> None:
    stage = Stage(engine_deaths_per_job_max=9)
    suspect, waiting = stage.create(prompt="Hi", n=2), stage.create()
    solos = []
    for _ in range(SOLO_AFTER_DEATHS + 1):
        stage.start(suspect)
        stage.jobs.on_lost("killed")
        solos.append([work.solo for work in stage.broker.submitted[-3:]])
    once, twice, thrice = solos
    # Both choices of the suspect, and never the job that was not in the engine.
    assert (once, twice, thrice) == ([False, False, False], [True, True, False], [True, True, False])
    assert (suspect.deaths, waiting.deaths) == (3, 0)
    stage.start(suspect)
    stage.tokens(suspect, "a")
    stage.jobs.on_lost("killed")
    assert [work.solo for work in stage.broker.submitted[-3:]] == [False, False, False]


def test_a_waiting_job_is_handed_over_again_and_blamed_for_nothing() -> None:
    stage = Stage()
    job = stage.create()
    for _ in range(10):
        stage.jobs.on_lost("killed")
    assert (job.state, job.deaths, kinds(job)) == ("queued", 0, ["Queued"])
    assert len(stage.broker.submitted) == 11
    assert not any(work.solo for work in stage.broker.submitted)


def test_a_job_that_kills_the_engine_before_it_has_started_fails_alone() -> None:
    """Its prompt cannot even be prepared, or it cannot be let in: else it would kill one engine after the other."""
    stage = Stage(engine_deaths_per_job_max=2)
    waiting, running, guilty = stage.create(), stage.create(), stage.create(prompt="Hi", n=2)
    stage.prepare(guilty)
    for _ in range(3):
        stage.start(running)
        stage.jobs.on_batch(Batch((), STATS, handling=guilty.choices[1].lease))
        stage.jobs.on_lost("killed")
    assert error_code(guilty) == "engine_failed"
    assert (waiting.state, waiting.deaths, kinds(waiting)) == ("queued", 0, ["Queued"])
    # This one has to begin again each time, but is not under suspicion: the engine had another in hand.
    assert (running.state, running.deaths, kinds(running).count("Resumed")) == ("queued", 0, 3)


def test_a_job_that_was_in_hand_before_the_last_batch_is_blamed_for_nothing() -> None:
    stage = Stage()
    job, ended = stage.create(), stage.create()
    stage.jobs.on_batch(Batch((), STATS, handling=job.choices[0].lease))
    stage.send()
    stage.jobs.on_lost("killed")
    stage.jobs.on_batch(Batch((), STATS, handling=ended.choices[0].lease))
    stage.jobs.cancel("ann", ended.id)
    stage.jobs.on_lost("killed")
    stage.jobs.on_lost("killed")
    assert (job.deaths, ended.deaths, ended.state) == (0, 0, "cancelled")


def test_a_job_of_which_nothing_is_in_the_engine_any_more_is_blamed_for_nothing() -> None:
    """Of two choices one has ended, and the other waits."""
    stage = Stage(engine_deaths_per_job_max=1)
    job = stage.create(prompt="Hi", n=2)
    stage.prepare(job)
    stage.send(Started(job.choices[0].lease, 3, 0))
    stage.tokens(job, "a")
    stage.finish(job)
    for _ in range(5):
        stage.jobs.on_lost("killed")
    assert (job.state, job.deaths) == ("running", 0)
    stage.send(Started(job.choices[1].lease, 3, 0))
    stage.finish(job, index=1)
    assert job.state == "completed"


def test_a_job_that_kills_the_engine_is_tried_alone_and_then_fails_alone() -> None:
    stage = Stage(engine_deaths_per_job_max=3)
    guilty, innocent = stage.create(), stage.create()
    for _ in range(2):
        stage.start(guilty)
        stage.start(innocent)
        stage.jobs.on_lost("killed")
    assert [work.solo for work in stage.broker.submitted[-2:]] == [True, True]
    # Alone, the innocent one makes progress and is trusted again.
    stage.start(innocent)
    stage.tokens(innocent, "a")
    for _ in range(2):
        stage.start(guilty)
        stage.jobs.on_lost("killed")
        if guilty.ended:
            break
    assert error_code(guilty) == "engine_failed"
    assert innocent.state == "queued"
    assert not stage.broker.submitted[-1].solo
    stage.start(innocent)
    stage.tokens(innocent, "b")
    stage.finish(innocent)
    assert (innocent.text(), innocent.state) == ("ab", "completed")


def test_a_token_clears_a_jobs_record() -> None:
    stage = Stage(engine_deaths_per_job_max=1)
    job = stage.create()
    for text in ("a", "b", "c", "d"):
        stage.start(job)
        stage.tokens(job, text)
        stage.jobs.on_lost("killed")
    assert (job.state, job.text(), job.deaths) == ("queued", "abcd", 1)
    stage.start(job)
    stage.jobs.on_lost("killed")
    assert error_code(job) == "engine_failed"


def test_only_the_choices_that_are_not_done_are_handed_over_again() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=3)
    stage.start(job)
    stage.tokens(job, "a", index=0)
    stage.tokens(job, "bb", index=1)
    stage.finish(job, index=1)
    stage.jobs.on_lost("killed")
    again = stage.broker.submitted[3:]
    assert [(work.generation.index, work.generation.generated) for work in again] == [(0, (1,)), (2, ())]
    assert kinds(job).count("Resumed") == 1
    stage.start(job)
    stage.finish(job, index=0)
    stage.finish(job, index=2)
    end = job.log.records[-1].event
    assert isinstance(end, Finished)
    assert end.finish_reasons == ("stop", "stop", "stop")
    assert [job.text(index) for index in range(3)] == ["a", "bb", ""]


def test_a_sequence_that_breaks_fails_its_job_and_no_other() -> None:
    stage = Stage()
    job, other = stage.create(prompt="Hi", n=2), stage.create()
    stage.start(job)
    stage.start(other)
    stage.send(Broke(job.choices[1].lease, EngineFailed("not a number").problem()))
    assert error_code(job) == "engine_failed"
    assert stage.broker.cancelled == [choice.lease for choice in job.choices]
    stage.tokens(other, "a")
    assert other.text() == "a"


def test_an_engine_for_good_gone_fails_all_jobs_with_its_reason() -> None:
    stage = Stage()
    jobs = [stage.create() for _ in range(3)]
    stage.start(jobs[0])
    ended = stage.run(stage.create(), "x")
    problem = ModelError("The model file is broken.").problem()
    stage.jobs.on_state(EngineState(phase="failed", error=problem))
    assert [error_code(job) for job in jobs] == ["model_unavailable"] * 3
    assert (ended.state, stage.jobs.live) == ("completed", 0)


def test_other_phases_change_nothing() -> None:
    stage = Stage()
    job = stage.create()
    for phase in ("loading", "restarting", "ready", "closed"):
        stage.jobs.on_state(EngineState(phase=phase))
    assert (job.state, job.log.tail) == ("queued", 1)


def test_every_attempt_is_numbered_in_the_log() -> None:
    stage = Stage()
    job = stage.create()
    for _ in range(3):
        stage.start(job)
        stage.tokens(job, "a")
        stage.jobs.on_lost("killed")
    attempts = [record.event.attempt for record in job.log.records if isinstance(record.event, Resumed)]
    assert attempts == [2, 3, 4]
    assert job.log.attempt == 4


def test_log_probabilities_reach_the_log() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", include=["ids", "logprobs"])
    stage.start(job)
    stage.tokens(job, "a", logprobs=True)
    token = next(record.event for record in job.log.records if isinstance(record.event, Token))
    assert (token.ids, token.logprobs) == ((1,), (-0.5,))
    assert job.request.include_ids


def test_events_of_unknown_work_are_ignored() -> None:
    stage = Stage()
    stage.send(Started("77", 1, 0), Delta("78", (1,), "x"))
    assert stage.seen == []
