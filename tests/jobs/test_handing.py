"""Leases, and whom the death of an engine may be blamed on."""

from __future__ import annotations

import pytest

from tests.jobs.scripted import Stage
from worker.jobs.handing import is_blamed


def test_every_attempt_has_a_lease_of_its_own_and_only_the_latest_counts() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=2)
    stage.prepare(job)
    first = [choice.lease for choice in job.choices]
    stage.jobs.on_lost("killed")
    second = [choice.lease for choice in job.choices]
    assert len({*first, *second}) == 4
    assert set(stage.jobs._handing.leases) == set(second)
    assert [job.holds(lease) for lease in (*first, *second)] == [False, False, True, True]


def test_no_lease_outlives_its_choice_or_its_job() -> None:
    stage = Stage()
    job = stage.create(prompt="Hi", n=2)
    stage.start(job)
    stage.finish(job, index=0)
    assert set(stage.jobs._handing.leases) == {job.choices[1].lease}
    # The engine has ended one choice by itself: only the other is withdrawn from it.
    stage.jobs.cancel("ann", job.id)
    assert (stage.jobs._handing.leases, stage.broker.cancelled) == ({}, [job.choices[1].lease])


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize(("suspect", "blamed"), [("own", True), ("another", False), ("", None)])
def test_the_suspect_is_blamed_and_without_one_all_that_ran(runs: bool, suspect: str, blamed: bool | None) -> None:
    stage = Stage()
    job, other = stage.create(), stage.create()
    if runs:
        stage.start(job)
    lease = {"own": job.choices[0].lease, "another": other.choices[0].lease, "": ""}[suspect]
    assert is_blamed(job, lease) == (runs if blamed is None else blamed)
