"""The agenda yields each job when it is due, as a look at all of them would, and keeps none that has ended."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import Stage
from worker.jobs.agenda import STALE_MAX, Agenda
from worker.jobs.job import Job


def jobs(count: int) -> list[Job]:
    stage = Stage()
    made = [stage.create() for _ in range(count)]
    for job in made:
        job.due_ms = math.inf
    return made


OF_THREE = st.integers(0, 2)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("plan"), OF_THREE, st.integers(0, 20)),
        st.tuples(st.just("drop"), OF_THREE, st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.integers(0, 20)),
    )
)


@given(STEPS)
def test_it_yields_what_a_look_at_all_jobs_would_find(steps: list[tuple[str, int, int]]) -> None:
    agenda, made, due = Agenda(1000, 0), jobs(3), dict[int, float]()
    for what, index, at_ms in steps:
        if what == "plan":
            agenda.plan_at(made[index], at_ms)
            due[index] = min(due.get(index, math.inf), at_ms)
        elif what == "drop":
            agenda.drop(made[index])
            due.pop(index, None)
        else:
            found = [made.index(job) for job in agenda.pop_due(at_ms)]
            expected = [index for index, due_ms in due.items() if due_ms <= at_ms]
            assert sorted(found) == sorted(expected)
            due = {index: due_ms for index, due_ms in due.items() if index not in expected}


def test_never_is_no_time() -> None:
    agenda, [job] = Agenda(1000, 0), jobs(1)
    agenda.plan_at(job, math.inf)
    assert list(agenda.pop_due(1e12)) == []


def test_jobs_that_ended_long_before_they_were_due_are_not_kept() -> None:
    agenda, made = Agenda(1000, 0), jobs(3 * STALE_MAX)
    for job in made:
        agenda.plan_at(job, 1e9)
        agenda.drop(job)
    assert len(agenda._heap) <= STALE_MAX


def test_a_sweep_looks_only_at_what_is_due() -> None:
    stage = Stage()
    job = stage.create()
    stage.prepare(job)
    stage.jobs.watch(job, lambda: None)
    stage.clock.advance(60_000)
    stage.jobs.sweep()
    assert job.due_ms == math.inf, "a watched job without a deadline is never due"
    stage.jobs.unwatch(job, lambda: None)
    assert job.due_ms == stage.clock.monotonic_ms() + stage.settings.orphan_ttl_s * 1000
