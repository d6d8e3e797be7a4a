"""Commands of clients: create, find, cancel, prioritize, watch."""

from __future__ import annotations

import pytest

from tests.jobs.scripted import ANN, INFO, LIMITS, Stage
from worker.brokers.base import EngineState
from worker.engines.base import Delta
from worker.errors import Draining, IdempotencyMismatch, JobLost, JobNotFound
from worker.errors import ModelError as ModelErrorRaised
from worker.events import Admitted, Cancelled, Failed, Finished, FirstToken, Note, Progress, Queued, Token
from worker.jobs.job import Job
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.operations.worker_check import WorkerCheck

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"


def kinds(job: Job) -> list[str]:
    """Return the names of a job's events."""
    return [type(record.event).__name__ for record in job.log.records]


# ---- create ----------------------------------------------------------------------------------------------------------


def test_a_new_job_is_queued_and_handed_to_the_broker() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", max_tokens=7, priority=8, seed=11, n=1)
    assert (job.state, job.position, kinds(job)) == ("queued", 1, ["Queued"])
    [work] = stage.broker.submitted
    assert (work.account, work.priority, work.solo) == ("ann", 8, False)
    assert (work.generation.max_tokens, work.generation.generated, work.generation.sampling.seed) == (7, (), 11)
    assert work.generation.prompt.messages[0].content == "Hi"
    assert stage.jobs.live == 1


def test_a_job_without_an_id_gets_one_of_its_own() -> None:
    stage = Stage()
    first, second = stage.create(), stage.create()
    assert first.id.startswith("job-") and len(first.id) == 40
    assert first.id != second.id
    assert first.log.epoch != second.log.epoch
    assert first.seed != second.seed


def test_the_same_request_again_finds_the_job_in_every_state() -> None:
    stage = Stage()
    request = Infer().parse({"prompt": "Hi", "seed": 1}, LIMITS, WrongFields())
    job, found = stage.jobs.create(ANN, ID, request)
    assert not found
    states = [job.state]
    for step in (stage.start, stage.tokens, stage.finish):
        assert stage.jobs.create(ANN, ID, request) == (job, True)
        step(job)
        states.append(job.state)
    assert stage.jobs.create(ANN, ID, request) == (job, True)
    assert states == ["queued", "running", "running", "completed"]
    assert len(stage.broker.submitted) == 1


def test_another_body_under_the_same_id_is_refused() -> None:
    stage = Stage()
    stage.create(ID, prompt="Hi")
    with pytest.raises(IdempotencyMismatch, match="another body"):
        stage.create(ID, prompt="Ho")


def test_ways_of_delivery_are_not_part_of_the_body() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", type="create", ref="1", channels=["token"], coalesce_ms=0)
    assert stage.create(ID, prompt="Hi", after="k3f9-3", window=None) is job


def test_a_resume_of_an_unknown_job_never_runs_it_again() -> None:
    stage = Stage()
    request = Infer().parse({"prompt": "Hi"}, LIMITS, WrongFields())
    with pytest.raises(JobLost):
        stage.jobs.create(ANN, ID, request, resuming=True)
    assert stage.broker.submitted == []


def test_the_same_id_of_two_principals_are_two_jobs() -> None:
    stage = Stage()
    anns, bobs = stage.create(ID, "ann", prompt="Hi"), stage.create(ID, "bob", prompt="Ho")
    assert anns is not bobs
    assert stage.jobs.get("bob", ID) is bobs
    assert (stage.jobs.list("ann"), stage.jobs.list("eve")) == ([anns], [])
    with pytest.raises(JobNotFound):
        stage.jobs.get("eve", ID)


def test_without_a_usable_model_jobs_are_refused_with_the_reason() -> None:
    stage = Stage()
    problem = ModelErrorRaised("The model file is gone.").problem()
    stage.broker.state = EngineState(phase="failed", error=problem)
    with pytest.raises(ModelErrorRaised, match="file is gone"):
        stage.create()


def test_jobs_wait_while_a_model_is_loaded() -> None:
    stage = Stage()
    stage.broker.state = EngineState(phase="loading")
    assert stage.create().state == "queued"


def test_a_script_needs_no_engine_and_ends_at_once() -> None:
    stage = Stage()
    stage.broker.state = EngineState(phase="failed", info=INFO, error=ModelErrorRaised("gone").problem())
    job, _ = stage.jobs.create(ANN, ID, WorkerCheck().parse({"operation": "worker_check"}, LIMITS, WrongFields()))
    assert (job.state, stage.broker.submitted, stage.jobs.live) == ("completed", [], 0)
    assert job.text() == "Hello from the worker. Grüße, 你好, 👩‍🚀! [DONE] is only text."
    assert isinstance(job.log.records[-1].event, Finished)
    assert stage.jobs._admission.waiting_jobs == 0


def test_a_script_reports_no_rate_of_tokens() -> None:
    stage = Stage()
    job, _ = stage.jobs.create(ANN, ID, WorkerCheck().parse({}, LIMITS, WrongFields()))
    job.timing.last_token = (job.timing.first_token or 0) + 1
    assert job.usage(stage.clock.now_ms).tokens_per_s is None


# ---- the whole life --------------------------------------------------------------------------------------------------


def test_the_life_of_a_job_as_its_log_tells_it() -> None:
    stage = Stage()
    job = stage.create()
    stage.clock.advance(12)
    stage.start(job, prompt_tokens=5, cached_tokens=2)
    stage.clock.advance(29)
    stage.tokens(job, "Hel")
    stage.clock.advance(10)
    stage.tokens(job, "lo", "!")
    stage.clock.advance(5)
    stage.finish(job, "stop_string", stop_sequence="\n")
    assert kinds(job) == [
        "Queued",
        "Tokenized",
        "Admitted",
        *["Token", "FirstToken", "Token", "Token"],
        "Note",
        "Finished",
    ]
    assert (job.state, job.text(), job.ended) == ("completed", "Hello!", True)
    assert job.log.records[2].event == Admitted(5, 2)
    end = job.log.records[-1].event
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.stop_sequence, end.finish_reasons) == ("stop_string", "\n", ())
    usage = end.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (5, 3, 2)
    assert (usage.queue_ms, usage.ttft_ms, usage.total_ms, usage.tokens_per_s) == (12, 41, 56, 200.0)
    assert stage.seen == [(job.id, n) for n in range(1, 10)]


def test_times_in_the_log_are_wall_clock() -> None:
    stage = Stage()
    job = stage.create()
    stage.clock.advance(250)
    stage.start(job)
    first, *_, last = job.log.records
    assert last.at_ms - first.at_ms == 250
    assert first.at_ms == stage.clock.wall_ms() - 250 == job.created_at_ms


def test_a_new_position_is_told_and_a_new_estimate_alone_is_not() -> None:
    stage = Stage()
    job = stage.create()
    stage.place(job, 1, 300)
    stage.place(job, 3, 900)
    stage.place(job, 3, 800)
    assert [record.event for record in job.log.records] == [Queued(1), Queued(3, 900)]
    assert (job.position, job.eta_ms) == (3, 800)
    stage.start(job)
    assert (job.position, job.eta_ms) == (None, None)
    stage.place(job, 9)
    assert job.position is None


def test_prefill_is_told_when_it_takes_several_steps_and_moves_enough() -> None:
    stage = Stage()
    short, long = stage.create(), stage.create()
    stage.start(short)
    stage.prefill(short, 3, 3)
    assert "Progress" not in kinds(short)
    stage.start(long, prompt_tokens=1000)
    for done in (100, 110, 149, 160, 980, 1000):
        stage.prefill(long, done, 1000)
    shares = [record.event.done for record in long.log.records if isinstance(record.event, Progress)]
    assert shares == [100, 160, 980, 1000]


def test_three_choices_end_once_all_have() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=3, seed=2**64 - 1)
    stage.prepare(job)
    seeds = [work.generation.sampling.seed for work in stage.broker.submitted]
    assert seeds == [2**64 - 1, 0, 1]
    assert [work.generation.index for work in stage.broker.submitted] == [0, 1, 2]
    stage.start(job, prompt_tokens=4)
    assert kinds(job).count("Admitted") == 1
    stage.tokens(job, "a", index=0)
    stage.tokens(job, "b", "B", index=2)
    stage.finish(job, "length", index=2)
    stage.finish(job, "stop", index=0)
    assert job.state == "running"
    stage.tokens(job, "c", index=1)
    stage.finish(job, "stop_string", index=1, stop_sequence="x")
    end = job.log.records[-1].event
    assert isinstance(end, Finished)
    assert end.finish_reasons == ("stop", "stop_string", "length")
    assert (end.finish_reason, end.stop_sequence) == ("stop", None)
    assert [job.text(index) for index in range(3)] == ["a", "c", "bB"]
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (4, 4)


def test_what_an_engine_refuses_fails_with_its_reason() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=2)
    stage.refuse(job, "The prompt is too long.")
    assert job.state == "failed"
    end = job.log.records[-1].event
    assert isinstance(end, Failed)
    assert end.error.detail == "The prompt is too long."
    assert sorted(stage.broker.cancelled) == sorted(work.generation.lease for work in stage.broker.submitted)


# ---- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", ["queued", "admitted", "decoding"])
def test_a_cancel_ends_a_live_job_at_once_and_frees_its_slot(reached: str) -> None:
    stage = Stage()
    job = stage.create(ID)
    if reached != "queued":
        stage.start(job)
    if reached == "decoding":
        stage.tokens(job, "a", "b")
    assert stage.jobs.cancel("ann", ID) is job
    assert job.state == "cancelled"
    end = job.log.records[-1].event
    assert isinstance(end, Cancelled)
    assert (end.reason, end.usage.completion_tokens) == ("client", 2 if reached == "decoding" else 0)
    assert stage.broker.cancelled == [stage.broker.submitted[0].generation.lease]
    before = job.log.tail
    stage.start(job)
    stage.tokens(job, "late")
    stage.finish(job)
    assert job.log.tail == before


@pytest.mark.parametrize("how", ["completed", "cancelled"])
def test_a_cancel_of_an_ended_job_changes_nothing(how: str) -> None:
    stage = Stage()
    job = stage.create(ID)
    stage.run(job, "a") if how == "completed" else stage.jobs.cancel("ann", ID)
    before = job.log.tail
    assert stage.jobs.cancel("ann", ID).state == how
    assert job.log.tail == before


def test_nobody_cancels_another_principals_job() -> None:
    stage = Stage()
    job = stage.create(ID, "ann")
    with pytest.raises(JobNotFound):
        stage.jobs.cancel("bob", ID)
    assert job.state == "queued"


def test_a_cancel_takes_all_choices_that_still_run() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", n=3)
    stage.start(job)
    stage.finish(job, index=1)
    stage.jobs.cancel("ann", ID)
    assert stage.broker.cancelled == [job.choices[0].lease, job.choices[2].lease]


# ---- prioritize, watch -----------------------------------------------------------------------------------------------


def test_a_priority_reaches_the_broker_and_survives_an_engine() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", n=2)
    stage.prepare(job)
    stage.jobs.prioritize("ann", ID, 9)
    assert stage.broker.updated == [(choice.lease, 9) for choice in job.choices]
    stage.jobs.on_lost("killed")
    assert [work.priority for work in stage.broker.submitted] == [5, 5, 9, 9]


def test_watchers_hear_every_append_until_they_leave() -> None:
    stage = Stage()
    job = stage.create()
    heard: list[int] = []

    def wake() -> None:
        heard.append(job.log.tail)

    stage.jobs.watch(job, wake)
    stage.start(job)
    stage.tokens(job, "a")
    stage.jobs.unwatch(job, wake)
    stage.tokens(job, "b")
    assert heard == [2, 3, 4, 5]
    assert job.watchers == 0


def test_the_first_token_is_recorded_once() -> None:
    stage = Stage()
    job = stage.create()
    stage.clock.advance(40)
    stage.start(job)
    stage.tokens(job, "a", "b")
    stage.jobs.on_lost("killed")
    stage.start(job)
    stage.tokens(job, "c")
    events = [record.event for record in job.log.records]
    assert [event for event in events if isinstance(event, FirstToken)] == [FirstToken(40)]
    assert isinstance(events[events.index(FirstToken(40)) - 1], Token)
    assert [event.action for event in events if isinstance(event, Note)] == ["engine_restarted"]


def test_a_delta_of_nothing_leaves_no_record() -> None:
    stage = Stage()
    job = stage.create()
    stage.start(job)
    before = job.log.tail
    stage.tokens(job, "a")
    stage.finish(job)
    tokens = [record.event for record in job.log.records[before:] if isinstance(record.event, Token)]
    assert [token.text for token in tokens] == ["a"]


def test_refuses_new_jobs_while_draining_but_finds_old_ones() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi")
    idle: list[str] = []
    stage.jobs.drain(lambda: idle.append("idle"))
    with pytest.raises(Draining) as refused:
        stage.create()
    assert refused.value.retry_after_ms == 2000
    assert stage.create(ID, prompt="Hi") is job
    assert idle == []
    stage.run(job, "a")
    assert idle == ["idle"]


def test_a_drain_without_jobs_is_idle_at_once() -> None:
    stage = Stage()
    idle: list[str] = []
    stage.jobs.drain(lambda: idle.append("idle"))
    assert idle == ["idle"]


def test_the_tokens_of_a_step_are_passed_on_together_and_before_what_comes_later() -> None:
    stage, steps, records = Stage(), list[list[tuple[str, int]]](), list[tuple[str, int]]()
    stage.jobs._news.token_observers = (lambda tokens: steps.append([(job.id, record.n) for job, record in tokens]),)
    one, other = stage.create("job-one-0123456789"), stage.create("job-two-0123456789")
    for job in (one, other):
        stage.start(job)
        stage.tokens(job, "first")
    woken: list[int] = []
    stage.jobs.watch(one, lambda: woken.append(one.log.tail))
    steps.clear()
    tail = one.log.tail
    leases = one.choices[0].lease, other.choices[0].lease
    stage.send(Delta(leases[0], (1,), "a"), Delta(leases[1], (2,), "b"))
    assert (steps, woken) == ([[(one.id, tail + 1), (other.id, tail + 1)]], [tail + 1])
    steps.clear()
    stage.jobs._news.observers = (lambda job, _: records.append((job.id, len(steps))),)
    stage.send(Delta(leases[1], (3,), "c"), Delta(leases[0], (1,), "d", finish="stop"), Delta(leases[1], (4,), "e"))
    assert records == [(one.id, 1), (one.id, 1)], "the remark and the end come after the tokens before them"
    assert [[name for name, _ in step] for step in steps] == [[other.id, one.id], [other.id]]


def test_what_happens_in_one_step_happens_at_one_time() -> None:
    stage = Stage()
    job = stage.create(n=2, prompt="Hi")
    stage.start(job)
    first, second = (choice.lease for choice in job.choices)
    # Time passes while an observer works.
    stage.jobs._news.observers = (lambda _, __: stage.clock.advance(3),)
    stage.send(Delta(first, (1,), "a"), Delta(second, (2,), "b"))
    assert len({record.at_ms for record in job.log.records[-3:]}) == 1
    stage.send(Delta(first, (1,), "c"))
    assert job.log.records[-1].at_ms > job.log.records[-2].at_ms
