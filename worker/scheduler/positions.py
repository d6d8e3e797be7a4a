"""Tells waiting works their places in the queue: often enough to be followed, seldom enough to cost nothing. Pure."""

from __future__ import annotations

from collections.abc import Callable

from worker.scheduler.policy import Waiting
from worker.scheduler.rates import Rates
from worker.scheduler.works import Placed

# Up to here every move is told; further back only those by more than the share below of the place told before.
NEAR_POSITIONS = 32
FAR_MOVE = 0.1
# A round of news costs time for each waiting work: with so many of them rounds are twice as far apart, and so on.
WORKS_PER_INTERVAL = 256


class Positions:
    """Remembers what each waiting work was told last."""

    def __init__(self, news_ms: int) -> None:
        self._news_s = news_ms / 1000
        self._told: dict[str, int] = {}
        self._revision = 0
        self._next_s = float("-inf")

    def news(
        self, revision: int, waiting: int, order: Callable[[], list[Waiting]], rates: Rates, now_s: float
    ) -> list[Placed]:
        """Return what is worth telling now: nothing while `revision` stays the same or the last news are fresh.

        `order` is called only when news are due.
        """
        if revision == self._revision or now_s < self._next_s:
            return []
        self._revision = revision
        self._next_s = now_s + self._news_s * (1 + waiting / WORKS_PER_INTERVAL)
        told: dict[str, int] = {}
        news, ahead = [], 0.0
        for position, work in enumerate(order(), 1):
            before = self._told.get(work.lease)
            if before is None or _worth_telling(before, position):
                news.append(Placed(work.lease, position, rates.wait_ms(ahead)))
                before = position
            told[work.lease] = before
            ahead += rates.output_tokens(work.output_tokens_max)
        self._told = told
        return news


def _worth_telling(before: int, now: int) -> bool:
    if now <= NEAR_POSITIONS:
        return now != before
    return abs(now - before) > FAR_MOVE * before
