"""Who is refused, with what advice."""

from __future__ import annotations

import pytest

from tests.jobs.scripted import ANN, LIMITS, Stage
from worker.config import Settings
from worker.errors import BusyError, QueueFull, TooManyJobs
from worker.jobs.job import Job
from worker.jobs.limits.admission import Admission
from worker.jobs.limits.principals import Allowance, Principal
from worker.operations.base import JobRequest
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.scheduler.works import Stats


def request(max_tokens: int = 10, prompt: str = "1234") -> JobRequest:
    """Return a request whose estimate is max_tokens and a quarter of the prompt."""
    return Infer().parse({"prompt": prompt, "max_tokens": max_tokens}, LIMITS, WrongFields())


def stats(decode_tokens_per_s: float) -> Stats:
    """Return engine statistics with this rate."""
    return Stats(1, 1, 4, 0, 0, 1.0, 1.5, decode_tokens_per_s, 0.0)


def test_the_estimate_counts_all_choices_and_a_quarter_of_the_prompt() -> None:
    assert request(max_tokens=10, prompt="x" * 40).tokens_estimate == 20
    assert Infer().parse({"prompt": "x" * 40, "max_tokens": 10, "n": 3}, LIMITS, WrongFields()).tokens_estimate == 40


def test_one_owner_has_a_limit_of_live_jobs() -> None:
    stage = Stage(jobs_per_account_max=2)
    first, _ = stage.create(), stage.create()
    with pytest.raises(TooManyJobs, match="2 live jobs"):
        stage.create()
    stage.create(owner_name="bob")
    stage.jobs.cancel("ann", first.id)
    stage.create()


def test_running_jobs_do_not_count_as_waiting() -> None:
    stage = Stage(queue_jobs_max=1)
    stage.start(stage.create())
    waiting = stage.create()
    with pytest.raises(QueueFull, match="limit of 1 jobs"):
        stage.create()
    stage.start(waiting)
    stage.create()


def test_waiting_tokens_are_bounded_but_an_empty_queue_takes_any_job() -> None:
    stage = Stage(queue_tokens_max=100)
    stage.create(prompt="big", max_tokens=900)
    with pytest.raises(QueueFull, match="smaller max_tokens"):
        stage.create(prompt="small", max_tokens=1)


def test_a_resumed_job_waits_again() -> None:
    stage = Stage(queue_jobs_max=1)
    job = stage.create()
    stage.start(job)
    stage.jobs.on_lost("the engine was killed")
    with pytest.raises(QueueFull):
        stage.create()


def user(name: str, share: float = 0.5) -> Principal:
    """Return a user of the key "web"."""
    return Principal(name=f"web/{name}", key="web", allowance=Allowance(queue_share=share))


def enter(stage: Stage, owner: Principal, **fields: int) -> Job:
    """Create a job of an owner."""
    return stage.jobs.create(owner, None, request(**fields))[0]


def test_one_account_holds_at_most_half_of_the_queue_while_others_have_keys() -> None:
    """However many users it has: other keys find room."""
    stage, bob = Stage(queue_jobs_max=5), Principal(name="bob", key="bob", allowance=Allowance(queue_share=0.5))
    first = enter(stage, user("a"))
    enter(stage, user("b"))
    with pytest.raises(QueueFull, match=r"2 of your jobs wait.* room for 5.* others have keys.* half") as refused:
        enter(stage, user("c"))
    assert refused.value.retry_after_ms
    enter(stage, bob)
    stage.start(first)
    enter(stage, user("c"))
    enter(stage, bob)
    with pytest.raises(QueueFull, match="half"):
        enter(stage, bob)


def test_one_account_holds_at_most_half_of_the_waiting_tokens_while_others_have_keys() -> None:
    stage, bob = Stage(queue_tokens_max=1000), Principal(name="bob", key="bob", allowance=Allowance(queue_share=0.5))
    job = enter(stage, user("a"), max_tokens=399)
    enter(stage, user("b"), max_tokens=99)
    with pytest.raises(QueueFull, match=r"work for 500 tokens, this job may need 2, .*half.* smaller max_tokens"):
        enter(stage, user("c"), max_tokens=1)
    enter(stage, bob, max_tokens=499)
    stage.prepare(job, 101)
    stage.jobs.cancel("web/b", stage.jobs.list("web/b")[0].id)
    with pytest.raises(QueueFull, match="work for 500 tokens"):
        enter(stage, user("b"), max_tokens=1)


def test_an_account_may_always_have_one_job_in_the_queue() -> None:
    stage = Stage(queue_jobs_max=1, queue_tokens_max=10)
    enter(stage, user("a"), max_tokens=900)


def test_the_only_account_has_all_of_the_queue() -> None:
    stage = Stage(queue_jobs_max=4)
    for _ in range(4):
        enter(stage, user("a", share=1.0))
    with pytest.raises(QueueFull, match="at its limit of 4 jobs"):
        enter(stage, user("a", share=1.0))


@pytest.mark.parametrize(
    ("rate", "waiting_tokens", "expected_ms"),
    [
        (None, 500, 5000),
        (0.0, 500, 5000),
        (10.0, 500, 5000),
        (1000.0, 500, 1000),
        (1.0, 100_000, 60_000),
        (7.0, 500, 7142),
    ],
)
def test_the_retry_time_follows_the_measured_rate_within_bounds(
    rate: float | None, waiting_tokens: int, expected_ms: int
) -> None:
    admission = Admission(Settings(queue_jobs_max=1, max_tokens_max=100_000))
    admission.waiting_jobs, admission.waiting_tokens = 1, waiting_tokens
    with pytest.raises(BusyError) as refused:
        admission.admit(ANN, request(), None if rate is None else stats(rate), 0)
    assert refused.value.retry_after_ms == expected_ms


def test_the_books_balance_whatever_happens_to_jobs() -> None:
    stage = Stage()
    jobs = [stage.create() for _ in range(5)]
    stage.run(jobs[0], "a")
    stage.start(jobs[1])
    stage.jobs.on_lost("killed")
    stage.jobs.cancel("ann", jobs[2].id)
    stage.refuse(jobs[3])
    stage.run(jobs[4], "b")
    stage.start(jobs[1])
    stage.finish(jobs[1])
    admission = stage.jobs._admission
    assert (admission.waiting_jobs, admission.waiting_tokens, dict(admission._live), dict(admission._waiting)) == (
        0,
        0,
        {},
        {},
    )
