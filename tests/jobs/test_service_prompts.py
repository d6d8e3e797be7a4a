"""A prompt is read once, elsewhere: its ids stay with the job, what was estimated is corrected, refusals are final."""

from __future__ import annotations

import pytest

from tests.jobs.scripted import ANN, LIMITS, READY, Stage, pack
from tests.jobs.test_service import kinds
from worker.brokers.base import EngineState
from worker.errors import FieldError, InvalidParams, JobLost, QueueFull, RateLimited
from worker.events import Failed, Note, Tokenized
from worker.jobs.job import PREPARING_AFTER_MS
from worker.jobs.limits.principals import Allowance, Principal
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.operations.worker_check import WorkerCheck
from worker.requests import Prompt, ResponseFormat

ID = "a-job-with-a-prompt"
PROBLEM = InvalidParams("Reading this took over 10 s.", errors=(FieldError("/prompt", "Shorter"),)).problem()


# ---- ids -------------------------------------------------------------------------------------------------------------


def test_the_ids_of_a_prompt_are_recorded_while_the_job_waits() -> None:
    stage = Stage()
    job = stage.create()
    stage.prepare(job, 3)
    assert (job.state, kinds(job)) == ("queued", ["Queued", "Tokenized"])
    assert job.log.records[1].event == Tokenized(3, pack([0, 1, 2]))
    assert stage.seen == [(job.id, 1), (job.id, 2)]


def test_a_prompt_is_handed_over_once_and_its_ids_ever_after() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", raw=True, max_tokens=9)
    stage.run(stage.create(), "x")
    first = stage.broker.submitted[0].generation
    assert (first.prompt, first.prompt_ids) == (Prompt(text="Hi"), b"")
    stage.start(job)
    stage.tokens(job, "one")
    for _ in range(2):
        stage.jobs.on_lost("killed")
        again = stage.broker.submitted[-1].generation
        assert (again.prompt, again.prompt_ids, again.generated) == (Prompt(), pack([0, 1, 2]), (3,))
        # A work with ids is prepared as well, and says nothing new.
        stage.jobs.on_prepared(again.lease, 3, b"")
    assert kinds(job).count("Tokenized") == 1


def test_the_other_choices_wait_for_the_ids_of_the_first() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=3)
    stage.jobs.prioritize(job.owner_name, job.id, 9)
    assert [work.generation.index for work in stage.broker.submitted] == [0]
    assert stage.broker.updated == [(job.choices[0].lease, 9)]
    stage.prepare(job)
    rest = stage.broker.submitted[1:]
    assert [(work.generation.index, work.priority) for work in rest] == [(1, 9), (2, 9)]
    assert {(work.generation.prompt, work.generation.prompt_ids) for work in rest} == {(Prompt(), job.prompt_ids)}


def test_choices_that_were_not_handed_over_are_not_withdrawn() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=3)
    stage.jobs.cancel(job.owner_name, job.id)
    assert stage.broker.cancelled == [job.choices[0].lease]
    stage.prepare(job)
    assert (len(stage.broker.submitted), job.prompt_ids) == (1, b"")


def test_an_unread_prompt_is_read_again_after_a_death_that_is_not_its_fault() -> None:
    stage = Stage(engine_deaths_per_job_max=0)
    job = stage.create(prompt="Hi", raw=True, n=2)
    stale = job.choices[0].lease
    stage.jobs.on_lost("killed")
    assert (job.deaths, kinds(job)) == (0, ["Queued"])
    assert [work.generation.prompt.text for work in stage.broker.submitted] == ["Hi", "Hi"]
    stage.jobs.on_prepared(stale, 3, pack([0, 1, 2]))
    assert job.prompt_ids == b""
    stage.prepare(job)
    assert [work.generation.index for work in stage.broker.submitted] == [0, 0, 1]


def test_ids_count_in_what_an_ended_job_occupies() -> None:
    stage = Stage(retention_bytes_max=100_000)
    job = stage.create(ID)
    stage.prepare(job, 30_000)
    stage.jobs.cancel("ann", ID)
    stage.jobs.sweep()
    assert stage.jobs.list("ann") == []


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_refused_work_fails_its_job_and_no_other() -> None:
    stage = Stage()
    job, other = stage.create(prompt="Hi", n=2), stage.create()
    lease = job.choices[0].lease
    stage.jobs.on_refused(lease, PROBLEM)
    end = job.log.records[-1].event
    assert isinstance(end, Failed)
    assert (end.error, job.state, other.state) == (PROBLEM, "failed", "queued")
    stage.jobs.on_refused(lease, PROBLEM)
    assert kinds(job) == ["Queued", "Failed"]


def test_a_remembered_refusal_is_answered_before_there_is_a_job_or_a_charge() -> None:
    stage = Stage(jobs_per_minute_max=1)
    stage.broker.refused.append((Prompt(text="bad"), PROBLEM))
    for _ in range(3):
        with pytest.raises(InvalidParams, match="over 10 s") as refused:
            stage.create(prompt="bad", raw=True)
        assert refused.value.problem() == PROBLEM
    assert (stage.jobs.list("ann"), stage.broker.submitted) == ([], [])
    stage.create(prompt="good")


def test_a_form_is_remembered_like_a_prompt() -> None:
    stage = Stage()
    stage.broker.refused.append((ResponseFormat("regex", pattern="a{9}"), PROBLEM))
    with pytest.raises(InvalidParams, match="over 10 s"):
        stage.create(prompt="Hi", response_format={"type": "regex", "pattern": "a{9}"})
    stage.create(prompt="Hi", response_format={"type": "regex", "pattern": "a{8}"})


def test_a_known_job_attaches_before_anything_else_is_asked() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="bad", raw=True)
    stage.broker.refused.append((Prompt(text="bad"), PROBLEM))
    assert stage.create(ID, prompt="bad", raw=True) is job
    request = Infer().parse({"prompt": "bad", "raw": True}, LIMITS, WrongFields())
    with pytest.raises(JobLost):
        stage.jobs.create(ANN, "another-id-of-ours", request, resuming=True)


# ---- reading that takes long -----------------------------------------------------------------------------------------


def test_a_prompt_that_is_read_late_is_remarked_on_once() -> None:
    stage = Stage()
    job, quick = stage.create(), stage.create()
    stage.prepare(quick)
    stage.clock.advance(PREPARING_AFTER_MS - 1)
    stage.jobs.sweep()
    assert kinds(job) == ["Queued"]
    for ms in (1, 1000):
        stage.clock.advance(ms)
        stage.jobs.sweep()
    assert (kinds(job), kinds(quick)) == (["Queued", "Note"], ["Queued", "Tokenized"])
    note = job.log.records[-1].event
    assert isinstance(note, Note)
    assert (note.actor, note.action) == ("preparer", "preparing")
    stage.run(job, "a")
    assert job.state == "completed"


def test_the_wait_for_an_engine_is_no_late_reading() -> None:
    stage = Stage()
    stage.broker.state = EngineState(phase="loading")
    stage.new_jobs()
    job = stage.create()
    for phase, ms in (("loading", 5000), ("ready", PREPARING_AFTER_MS - 1), ("ready", 0)):
        stage.jobs.on_state(EngineState(phase=phase))
        stage.clock.advance(ms)
        stage.jobs.sweep()
        assert kinds(job) == ["Queued"]
    stage.clock.advance(1)
    stage.jobs.sweep()
    assert kinds(job) == ["Queued", "Note"]


# ---- what is charged -------------------------------------------------------------------------------------------------


def test_what_waits_is_counted_exactly_once_it_is_known() -> None:
    stage = Stage(queue_tokens_max=100)
    job = stage.create(prompt="x" * 160, max_tokens=50)
    assert stage.jobs._admission.waiting_tokens == 90
    with pytest.raises(QueueFull):
        stage.create(prompt="Hi", max_tokens=20)
    stage.prepare(job, 10)
    assert stage.jobs._admission.waiting_tokens == 60
    stage.create(prompt="Hi", max_tokens=20)
    stage.jobs.cancel("ann", job.id)
    assert stage.jobs._admission.waiting_tokens == 20


@pytest.mark.parametrize(("prompt_tokens", "left"), [(5, 85), (40, 50)])
def test_rates_are_corrected_when_the_prompt_is_read_and_when_the_job_ends(prompt_tokens: int, left: int) -> None:
    stage = Stage()
    owner = Principal(name="web", allowance=Allowance(tokens_per_minute_max=100))

    def accepted(max_tokens: int) -> bool:
        request = Infer().parse({"prompt": "x", "max_tokens": max_tokens}, LIMITS, WrongFields())
        try:
            found, _ = stage.jobs.create(owner, None, request)
        except RateLimited:
            return False
        stage.jobs.cancel("web", found.id)
        return True

    request = Infer().parse({"prompt": "x" * 80, "max_tokens": 10}, LIMITS, WrongFields())
    job, _ = stage.jobs.create(owner, None, request)
    assert (accepted(70), accepted(71)) == (True, False)
    stage.prepare(job, prompt_tokens)
    assert (accepted(left), accepted(left + 1)) == (True, False)
    stage.run(job, "a", "b")
    # Three tokens of prompt were prefilled, and two were generated.
    assert (accepted(95), accepted(96)) == (True, False)


def test_a_job_without_a_prompt_is_never_late() -> None:
    stage = Stage()
    job, _ = stage.jobs.create(ANN, None, WorkerCheck().parse({}, LIMITS, WrongFields()))
    stage.jobs.on_state(READY)
    stage.clock.advance(1000)
    stage.jobs.sweep()
    assert "Tokenized" not in kinds(job)
    assert job.state == "completed"
