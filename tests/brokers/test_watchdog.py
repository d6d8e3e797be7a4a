"""What has waited for the same thing for too long."""

from __future__ import annotations

import pytest

from worker.brokers.watchdog import LOOKS, Watchdog


def test_a_lane_that_waits_for_nothing_is_never_overdue() -> None:
    watchdog = Watchdog(1)
    assert not any(watchdog.overdue(0, None) for _ in range(3 * LOOKS))


def test_who_waits_for_the_same_for_too_long_is_overdue_once() -> None:
    watchdog = Watchdog(2)
    found = [watchdog.overdue(0, "a") for _ in range(2 * LOOKS + 2)]
    assert found == ([False] * LOOKS + [True]) * 2
    assert not watchdog.overdue(1, "a"), "each lane by itself"


@pytest.mark.parametrize("between", [None, "b"])
def test_what_changes_in_time_starts_anew(between: str | None) -> None:
    watchdog = Watchdog(1)
    for awaited in ("a", between) * 3:
        assert not any(watchdog.overdue(0, awaited) for _ in range(LOOKS))
