"""Which jobs are listed, and in which order."""

from __future__ import annotations

import math
import time

from tests.jobs.scripted import ANN, LIMITS, Stage
from worker.operations.fields import WrongFields
from worker.operations.worker_check import WorkerCheck


def test_an_owner_lists_its_own_jobs_newest_first_and_none_lists_all() -> None:
    stage = Stage()
    made = [stage.create(owner_name=name) for name in ("ann", "bob", "ann")]
    assert stage.jobs.list("ann") == [made[2], made[0]]
    assert stage.jobs.list("bob") == [made[1]]
    assert stage.jobs.list("eve") == []
    assert stage.jobs.list(None) == made[::-1]
    assert stage.jobs.list("ann", made[2].number) == [made[0]]
    assert stage.jobs.list(None, math.inf, 2) == [made[2], made[1]]


def test_a_place_in_the_list_outlives_its_job() -> None:
    stage = Stage(retention_s=1)
    made = [stage.create() for _ in range(3)]
    stage.run(made[1], "a")
    stage.clock.advance(1000)
    stage.jobs.sweep()
    assert stage.jobs.list("ann", made[1].number) == [made[0]]
    newer = stage.create()
    assert stage.jobs.list("ann") == [newer, made[2], made[0]]
    assert newer.number > made[2].number


def test_a_clock_that_goes_back_does_not_change_the_order() -> None:
    stage = Stage()
    first = stage.create()
    stage.clock.now_ms = 10.0
    assert stage.create().number > first.number


def test_a_forgotten_owner_leaves_nothing_behind() -> None:
    stage = Stage(retention_s=0)
    for number in range(20):
        stage.run(stage.create(owner_name=f"user-{number}"), "a")
        stage.jobs.sweep()
    registry = stage.jobs._registry
    assert (registry._jobs, registry._by_owner, registry.live, stage.jobs.list(None)) == ({}, {}, {}, [])


def test_a_page_costs_the_same_with_many_jobs_as_with_few() -> None:
    """Of others, or one's own: it is never a walk over all of them."""

    def best_s(stage: Stage, owner_name: str | None, before: float) -> float:
        times = []
        for _ in range(20):
            begun = time.perf_counter()
            assert len(stage.jobs.list(owner_name, before, 100)) == 100
            times.append(time.perf_counter() - begun)
        return min(times)

    few, many = Stage(), Stage(queue_jobs_max=1 << 20, jobs_per_account_max=1 << 20, queue_tokens_max=1 << 40)
    for _ in range(100):
        few.create()
        many.create(owner_name="bob")
    for _ in range(20_000):
        many.create()
    oldest = many.jobs.list("ann")[-101].number
    quiet_s = best_s(few, "ann", math.inf) + 50e-6
    for owner_name, before in (("ann", math.inf), ("ann", oldest), ("bob", math.inf), (None, math.inf), (None, oldest)):
        assert best_s(many, owner_name, before) < 10 * quiet_s


def test_however_fast_jobs_end_they_are_not_more_than_may_be_kept_for_long() -> None:
    """Sweeps alone would fall behind where the event loop is busy."""
    stage = Stage(retention_bytes_max=1 << 20)
    for _ in range(2000):
        stage.jobs.create(ANN, None, WorkerCheck().parse({}, LIMITS, WrongFields()))
    kept = sum(job.kept_bytes for job in stage.jobs.list(ANN.name))
    assert kept < (1 << 20) + 3 * max(job.kept_bytes for job in stage.jobs.list(ANN.name))
