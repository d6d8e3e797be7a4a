"""Which ended logs are forgotten, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.limits.retention import FORGOTTEN_MAX, Retention


def test_a_log_is_forgotten_at_its_age() -> None:
    kept = Retention(age_max_ms=1000, bytes_max=10_000)
    kept.add(("ann", "a"), 10, now_ms=0)
    kept.add(("ann", "b"), 10, now_ms=500)
    assert kept.pop_due(999) == []
    assert kept.pop_due(1000) == [("ann", "a")]
    assert kept.pop_due(1499) == []
    assert kept.pop_due(5000) == [("ann", "b")]
    assert (kept.pop_due(9999), kept.bytes) == ([], 0)


def test_the_oldest_go_first_when_all_are_too_many_bytes() -> None:
    kept = Retention(age_max_ms=1e9, bytes_max=100)
    for name, size in (("a", 60), ("b", 30), ("c", 30)):
        kept.add(("ann", name), size, now_ms=0)
    assert kept.pop_due(1) == [("ann", "a")]
    assert kept.bytes == 60


def test_a_log_larger_than_everything_is_not_kept() -> None:
    kept = Retention(age_max_ms=1e9, bytes_max=100)
    kept.add(("ann", "a"), 101, now_ms=0)
    assert kept.pop_due(0) == [("ann", "a")]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100)), max_size=30))
def test_every_log_is_forgotten_once_and_the_bytes_stay_in_bounds(steps: list[tuple[int, int]]) -> None:
    kept, now_ms, forgotten = Retention(age_max_ms=200, bytes_max=150), 0, list[tuple[str, str]]()
    for number, (wait_ms, size) in enumerate(steps):
        now_ms += wait_ms
        kept.add(("ann", str(number)), size, now_ms)
        forgotten += kept.pop_due(now_ms)
        assert kept.bytes <= 150
    forgotten += kept.pop_due(now_ms + 200)
    assert forgotten == [("ann", str(number)) for number in range(len(steps))]


def test_of_very_many_a_part_is_forgotten_at_a_time() -> None:
    """Forgetting 30,000 at once held the event loop for half a second."""
    kept = Retention(age_max_ms=1000, bytes_max=1 << 30)
    for number in range(FORGOTTEN_MAX + 1):
        kept.add(("ann", str(number)), 1, now_ms=0)
    assert (len(kept.pop_due(1000)), kept.pop_due(1000)) == (FORGOTTEN_MAX, [("ann", str(FORGOTTEN_MAX))])
