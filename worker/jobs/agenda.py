"""When each live job must be looked at again, so that a sweep looks only at what is due. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from itertools import count

from worker.events import Event
from worker.jobs.job import Job

STALE_MAX = 64
"""Void entries that are kept beyond one per job, before all are cleared away."""


class Agenda:
    """Live jobs by the time at which they are due, in monotonic milliseconds; most have none.

    A job that nobody watches is due after `orphan_ms`, one that is read late some time after `ready_at_ms`, when the
    engine became ready; infinity if it is not.
    """

    def __init__(self, orphan_ms: float, ready_at_ms: float) -> None:
        self._orphan_ms = orphan_ms
        self._ready_at_ms = ready_at_ms
        self._heap: list[tuple[float, int, Job]] = []
        self._numbers = count()
        self._planned = 0

    def plan(self, job: Job) -> None:
        """Make a job due when something is to happen to it by time alone, if it lives."""
        if not job.ended:
            self.plan_at(job, job.next_due_ms(self._orphan_ms, self._ready_at_ms))

    def plan_at(self, job: Job, due_ms: float) -> None:
        """Make a job due at this time, unless it is due earlier; infinity is never."""
        if due_ms >= job.due_ms:
            return
        self._planned += job.due_ms == math.inf
        job.due_ms = due_ms
        heapq.heappush(self._heap, (due_ms, next(self._numbers), job))
        self._clear_away()

    def follow_engine(self, *, ready: bool, now_ms: float, live: Iterable[Job]) -> None:
        """Learn whether an engine is ready now; if it has just become so, all live jobs are planned anew."""
        if not ready:
            self._ready_at_ms = math.inf
        elif self._ready_at_ms == math.inf:
            self._ready_at_ms = now_ms
            for job in live:
                self.plan(job)

    def drop(self, job: Job) -> None:
        """Forget a job, which has ended."""
        if job.due_ms < math.inf:
            job.due_ms = math.inf
            self._planned -= 1
            self._clear_away()

    def happenings(self, now_ms: float) -> Iterator[tuple[Job, Event]]:
        """Yield what the time alone brings about now, and plan the jobs for what comes next."""
        for job in self.pop_due(now_ms):
            event = job.due(now_ms, self._orphan_ms, self._ready_at_ms)
            if event is not None:
                yield job, event
            self.plan(job)

    def pop_due(self, now_ms: float) -> Iterator[Job]:
        """Yield the jobs that are due now. Each is due again only when it is planned again."""
        while self._heap and self._heap[0][0] <= now_ms:
            due_ms, _, job = heapq.heappop(self._heap)
            if due_ms == job.due_ms:
                self.drop(job)
                yield job

    def _clear_away(self) -> None:
        """Remove the void entries once they are the most: they would keep jobs, and their logs, for long."""
        if len(self._heap) > 2 * self._planned + STALE_MAX:
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].due_ms]
            heapq.heapify(self._heap)
