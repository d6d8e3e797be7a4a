"""Token buckets: never more than the limit allows, and the time to wait is exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS, READY, Stage
from worker.errors import QueueFull, RateLimited, TooManyJobs
from worker.jobs.job import Job
from worker.jobs.limits.principals import Allowance, Principal
from worker.jobs.limits.quota import MINUTE_MS, Bucket, Quotas, Rate
from worker.operations.base import Operation
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.operations.status import Status
from worker.operations.worker_check import WorkerCheck

rates = st.integers(1, 10**7)
moments = st.integers(0, 10**9)


# ---- the bucket ------------------------------------------------------------------------------------------------------


def test_a_bucket_begins_full_and_fills_evenly() -> None:
    bucket = Bucket(60, 0)
    bucket.withdraw(60, 0)
    assert bucket.wait_ms(1, 0) == 1000
    assert bucket.wait_ms(1, 999) == 1
    assert bucket.wait_ms(1, 1000) == 0
    assert bucket.wait_ms(60, 1000) == MINUTE_MS - 1000


def test_a_millisecond_too_early_is_too_early() -> None:
    """A seventh of a minute is no whole number of milliseconds."""
    bucket = Bucket(7, 0)
    bucket.withdraw(7, 0)
    assert bucket.wait_ms(1, 0) == 8572
    assert bucket.wait_ms(1, 8571) == 1
    assert bucket.wait_ms(1, 8572) == 0


def test_what_is_larger_than_the_bucket_needs_it_full_and_overdraws_it() -> None:
    bucket = Bucket(100, 0)
    assert bucket.wait_ms(250, 0) == 0
    bucket.withdraw(250, 0)
    assert bucket.wait_ms(1, 0) == MINUTE_MS * 151 // 100
    bucket = Bucket(100, 0)
    bucket.withdraw(1, 0)
    assert bucket.wait_ms(250, 0) == MINUTE_MS // 100


def test_what_is_given_back_never_fills_it_over_the_brim() -> None:
    bucket = Bucket(10, 0)
    bucket.withdraw(4, 0)
    bucket.withdraw(-100, 0)
    bucket.withdraw(10, 0)
    assert bucket.wait_ms(1, 0) > 0


def test_a_new_size_forgives_nothing() -> None:
    bucket = Bucket(10, 0)
    bucket.withdraw(10, 0)
    bucket.resize(20, 0)
    assert bucket.wait_ms(10, 0) == 0
    assert bucket.wait_ms(11, 0) > 0
    bucket.resize(5, 0)
    assert bucket.wait_ms(1, 0) == MINUTE_MS // 5 * 6


@given(rates, moments, st.lists(st.tuples(st.integers(1, 10**7), st.integers(0, 10**5)), max_size=20))
def test_the_wait_is_exact_to_the_millisecond(rate: int, now: int, asks: list[tuple[int, int]]) -> None:
    bucket = Bucket(rate, now)
    for amount, pause in asks:
        now += pause
        wait = bucket.wait_ms(amount, now)
        if wait:
            assert bucket.wait_ms(amount, now + wait - 1) == 1
            now += wait
        assert bucket.wait_ms(amount, now) == 0
        bucket.withdraw(amount, now)


@given(rates, st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**5)), min_size=1, max_size=30))
def test_no_window_gets_more_than_a_full_bucket_and_what_flowed_in(rate: int, asks: list[tuple[int, int]]) -> None:
    bucket, now, taken = Bucket(rate, 0), 0, 0
    for amount, pause in asks:
        now += pause
        wanted = min(amount, rate)
        if not bucket.wait_ms(wanted, now):
            bucket.withdraw(wanted, now)
            taken += wanted
        assert taken * MINUTE_MS <= rate * (MINUTE_MS + now)


# ---- quotas ----------------------------------------------------------------------------------------------------------


def test_a_refusal_takes_nothing_of_any_unit() -> None:
    quotas = Quotas()
    limits = {"jobs": 2, "tokens": 10}
    quotas.charge("a", limits, {"jobs": 1, "tokens": 6}, 0.0)
    for _ in range(5):
        with pytest.raises(RateLimited, match="10 tokens per minute"):
            quotas.charge("a", limits, {"jobs": 1, "tokens": 6}, 0.0)
    quotas.charge("a", limits, {"jobs": 1, "tokens": 4}, 0.0)
    with pytest.raises(RateLimited, match="2 jobs per minute") as refused:
        quotas.charge("a", limits, {"jobs": 1, "tokens": 0}, 0.0)
    assert refused.value.retry_after_ms == 30_000


def test_accounts_do_not_know_each_other_and_no_limit_is_none() -> None:
    quotas = Quotas()
    quotas.charge("a", {"jobs": 1}, {"jobs": 1}, 0.0)
    quotas.charge("b", {"jobs": 1}, {"jobs": 1}, 0.0)
    for _ in range(100):
        quotas.charge("c", {"jobs": 0}, {"jobs": 1}, 0.0)
    with pytest.raises(RateLimited):
        quotas.charge("a", {"jobs": 1}, {"jobs": 1}, 0.9)


# ---- in the service --------------------------------------------------------------------------------------------------


def create(stage: Stage, owner: Principal, job_id: str | None = None, **body: object) -> Job:
    """Create a job of a principal."""
    return stage.jobs.create(owner, job_id, Infer().parse({"prompt": "1234", **body}, LIMITS, WrongFields()))[0]


def web(name: str = "web", **allowance: int) -> Principal:
    """Return a principal of the key "web"."""
    return Principal(name=name, key="web", allowance=Allowance(**allowance))


def test_the_jobs_per_minute_of_a_key_are_shared_by_its_users() -> None:
    stage, first, second = Stage(), web("web/ann", jobs_per_minute_max=2), web("web/bob", jobs_per_minute_max=2)
    create(stage, first)
    stage.run(create(stage, second), "a")
    with pytest.raises(RateLimited) as refused:
        create(stage, first)
    assert refused.value.retry_after_ms == 30_000
    stage.clock.advance(29_999)
    with pytest.raises(RateLimited):
        create(stage, second)
    stage.clock.advance(1)
    create(stage, first)


def test_tokens_are_counted_by_estimate_and_put_right_by_use() -> None:
    stage, owner = Stage(), web(tokens_per_minute_max=100)
    job = create(stage, owner, max_tokens=99)
    with pytest.raises(RateLimited, match="tokens") as refused:
        create(stage, owner, max_tokens=9)
    assert refused.value.retry_after_ms == 6000
    # Of 100 counted, 3 of the prompt and 2 of output were used.
    stage.run(job, "a", "b")
    create(stage, owner, max_tokens=94)
    with pytest.raises(RateLimited):
        create(stage, owner, max_tokens=1)


def test_a_job_that_was_cancelled_in_the_queue_costs_no_tokens() -> None:
    stage, owner = Stage(), web(tokens_per_minute_max=100)
    for _ in range(5):
        stage.jobs.cancel("web", create(stage, owner, max_tokens=99).id)
    # All of the minute's tokens are left, and not one more.
    create(stage, owner, max_tokens=99)
    with pytest.raises(RateLimited) as refused:
        create(stage, owner, max_tokens=9)
    assert refused.value.retry_after_ms == 6000


def test_a_job_that_used_more_than_was_thought_is_charged_for_it() -> None:
    stage, owner = Stage(), web(tokens_per_minute_max=100)
    job = create(stage, owner, max_tokens=9)
    stage.start(job, prompt_tokens=150)
    stage.tokens(job, "a")
    stage.finish(job)
    with pytest.raises(RateLimited) as refused:
        create(stage, owner, max_tokens=9)
    assert refused.value.retry_after_ms == (151 - 100 + 10) * 600


def test_repeats_cost_nothing() -> None:
    stage, owner = Stage(), web(jobs_per_minute_max=1, tokens_per_minute_max=20)
    job_id = "repeated-job-of-web"
    job = create(stage, owner, job_id, max_tokens=9)
    for _ in range(5):
        assert create(stage, owner, job_id, max_tokens=9) is job
    with pytest.raises(RateLimited):
        create(stage, owner)


@pytest.mark.parametrize("operation", [WorkerCheck(), Status(lambda: READY)], ids=lambda operation: operation.name)
def test_a_job_with_a_script_counts_as_one(operation: Operation) -> None:
    stage, owner = Stage(), web(jobs_per_minute_max=2, jobs_max=1)

    def check() -> None:
        stage.jobs.create(owner, None, operation.parse({}, LIMITS, WrongFields()))

    job = create(stage, owner)
    with pytest.raises(TooManyJobs, match="1 live jobs"):
        check()
    stage.run(job, "a")
    check()
    with pytest.raises(RateLimited, match="2 jobs per minute"):
        check()
    stage.clock.advance(30_000)
    check()


def test_a_job_with_a_script_needs_no_room_in_the_queue_and_no_tokens() -> None:
    stage, owner = Stage(queue_jobs_max=1), web(tokens_per_minute_max=10)
    create(stage, owner, max_tokens=99)
    for _ in range(5):
        stage.jobs.create(owner, None, WorkerCheck().parse({}, LIMITS, WrongFields()))
    with pytest.raises(QueueFull):
        create(stage, owner)


def test_what_is_left_is_told_for_each_limit() -> None:
    stage, owner = Stage(), web(jobs_per_minute_max=6, tokens_per_minute_max=120)
    assert stage.jobs.rates(owner) == (Rate("jobs", 6, 6, 0), Rate("tokens", 120, 120, 0))
    create(stage, owner, max_tokens=59)
    assert stage.jobs.rates(owner) == (Rate("jobs", 6, 5, 10_000), Rate("tokens", 120, 60, 30_000))
    stage.clock.advance(9_999)
    assert stage.jobs.rates(owner) == (Rate("jobs", 6, 5, 1), Rate("tokens", 120, 79, 20_001))
    stage.clock.advance(1)
    assert stage.jobs.rates(owner) == (Rate("jobs", 6, 6, 0), Rate("tokens", 120, 80, 20_000))
    assert stage.jobs.rates(web()) == ()


def test_an_overdrawn_limit_has_nothing_left() -> None:
    quotas = Quotas()
    quotas.charge("a", {"tokens": 60}, {"tokens": 600}, 0.0)
    assert quotas.rates("a", {"tokens": 60, "jobs": 0}, 0.0) == (Rate("tokens", 60, 0, 10 * MINUTE_MS),)


def test_a_job_that_is_refused_for_another_reason_is_not_counted() -> None:
    stage, owner = Stage(queue_jobs_max=1), web(jobs_per_minute_max=2)
    first = create(stage, owner)
    for _ in range(5):
        with pytest.raises(Exception, match="limit of 1 jobs"):
            create(stage, owner)
    stage.start(first)
    create(stage, owner)


def test_the_limits_of_the_worker_hold_for_keys_without_their_own() -> None:
    stage = Stage(jobs_per_minute_max=1)
    create(stage, Principal(name="local"))
    with pytest.raises(RateLimited):
        create(stage, Principal(name="local"))
    for _ in range(3):
        create(stage, web(jobs_per_minute_max=3))
    with pytest.raises(RateLimited):
        create(stage, web(jobs_per_minute_max=3))


def test_live_jobs_of_a_key_with_a_limit_are_counted_over_its_users() -> None:
    stage, ann, bob = Stage(jobs_per_account_max=1), web("web/ann", jobs_max=2), web("web/bob", jobs_max=2)
    job = create(stage, ann)
    create(stage, ann)
    with pytest.raises(TooManyJobs, match="2 live jobs"):
        create(stage, bob)
    stage.run(job, "a")
    create(stage, bob)


def test_live_jobs_of_a_key_without_a_limit_are_counted_over_its_users() -> None:
    stage, ann, bob = Stage(jobs_per_account_max=1), web("web/ann"), web("web/bob")
    create(stage, ann)
    with pytest.raises(TooManyJobs, match="1 live jobs"):
        create(stage, bob)
    create(stage, Principal(name="other", key="other"))


def test_the_engine_is_shared_by_keys_and_their_weights() -> None:
    stage = Stage()
    create(stage, Principal(name="web/ann", key="web", allowance=Allowance(weight=3.0)))
    create(stage, Principal(name="local"))
    assert [(work.account, work.weight) for work in stage.broker.submitted] == [("web", 3.0), ("local", 1.0)]
