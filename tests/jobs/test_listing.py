"""Jobs in order, however many come and go."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import Stage
from worker.jobs.job import Job
from worker.jobs.listing import BLOCK_JOBS_MAX, Listing


def jobs(count: int) -> list[Job]:
    """Return jobs with the numbers 10, 20, 30..."""
    stage = Stage(queue_jobs_max=count, jobs_per_account_max=count)
    made = [stage.create() for _ in range(count)]
    for number, job in enumerate(made, 1):
        job.number = 10 * number
    return made


MANY = jobs(3 * BLOCK_JOBS_MAX + 7)


def test_the_newest_come_first_from_any_place_on() -> None:
    listing = Listing()
    assert (bool(listing), list(listing.before())) == (False, [])
    for job in MANY:
        listing.add(job)
    assert list(listing.before()) == MANY[::-1]
    for number in (0, 10, 11, 5120, 5121, 5130, 5131, 15_430, 15_431, 10**9):
        assert list(islice(listing.before(number), 3)) == [job for job in MANY[::-1] if job.number < number][:3]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=60), st.integers(1, 40))
def test_a_page_is_what_a_walk_over_all_would_find(steps: list[tuple[bool, int]], stride: int) -> None:
    """Adding and removing in any order; a stride of jobs is removed at once, so whole blocks go."""
    listing, model, coming = Listing(), list[Job](), iter(MANY)
    for adds, place in steps:
        if adds:
            for job in islice(coming, 30 * stride):
                listing.add(job)
                model.append(job)
        else:
            for _ in range(min(20 * stride, len(model))):
                listing.remove(model.pop(place % len(model)))
        number = place % (10 * len(MANY))
        assert list(islice(listing.before(number), 5)) == [job for job in model[::-1] if job.number < number][:5]
        assert bool(listing) == bool(model)
    assert list(listing.before()) == model[::-1]
