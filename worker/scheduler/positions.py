"""Reports queue positions: often enough to be followed, seldom enough to cost nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable

from worker.scheduler.policy import Waiting
from worker.scheduler.rates import Rates
from worker.scheduler.works import Placed

NEAR_POSITIONS = 32
"""Every change of a position up to here is reported."""

FAR_MOVE = 0.1
"""Further back, a change is reported if it is more than this share of the position reported last."""

WORKS_PER_INTERVAL = 256
"""A report costs time for each waiting work: with 256 of them reports are twice as far apart, and so on."""


class Positions:
    """Remembers the position of each waiting work that was reported last."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_s = interval_ms / 1000
        self._reported: dict[str, int] = {}
        self._revision = 0
        self._next_s = float("-inf")

    def changes(
        self, revision: int, waiting: int, order: Callable[[], list[Waiting]], rates: Rates, now_s: float
    ) -> list[Placed]:
        """Return the positions to report now: none while `revision` stays the same or the last report is fresh.

        `order` is called only when a report is due.
        """
        if revision == self._revision or now_s < self._next_s:
            return []
        self._revision = revision
        self._next_s = now_s + self._interval_s * (1 + waiting / WORKS_PER_INTERVAL)
        reported: dict[str, int] = {}
        changes, ahead = [], 0.0
        for position, work in enumerate(order(), 1):
            before = self._reported.get(work.lease)
            if before is None or _is_worth_reporting(before, position):
                changes.append(Placed(work.lease, position, rates.wait_ms(ahead)))
                before = position
            reported[work.lease] = before
            ahead += rates.output_tokens(work.output_tokens_max)
        self._reported = reported
        return changes


def _is_worth_reporting(before: int, now: int) -> bool:
    if now <= NEAR_POSITIONS:
        return now != before
    return abs(now - before) > FAR_MOVE * before
