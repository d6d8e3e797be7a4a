"""Who is next: the order in which waiting works enter the engine. Pure: time is passed in.

1. Higher priority first. A lane (the works of one account at one priority) gains a level per `priority_ageing_s`
   seconds that it waits unserved, without limit, so that no flood of others can starve it.
2. On one level, the account that was served least goes first (see `fairness`), then the oldest work.
3. Within a lane, first in, first out; a work that was paused for lack of KV cache is first again.
4. A work that does not fit is passed by at most `queue_skips_max` others; then all wait until it fits.
5. Nothing starts while the prompt tokens still to be prefilled fill a whole step: long prompts enter one at a time.
6. A solo work starts when nothing runs, and nothing starts beside it until its first token.

One `Selection` applies all this at one moment. Admission and the queue positions that clients see both use it, so the
positions are the order of service by construction.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from worker.engines.base import Prepared
from worker.scheduler.fairness import Ledger
from worker.scheduler.works import PreparedWork, Schedule

LOOK_PAST_MAX = 32
"""Lanes that do not fit and are looked past in one selection: bounds the search, and with it the step."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A work in the queue: `number` is its place in the order of arrival, `skips` how often others passed it."""

    work: PreparedWork
    prepared: Prepared
    number: int
    since_s: float
    skips: int = 0

    @property
    def lease(self) -> str:
        """The work's lease."""
        return self.prepared.lease

    @property
    def prefill_tokens(self) -> int:
        """Tokens to compute before the next one can be sampled: prompt and output so far."""
        return self.prepared.tokens_present

    @property
    def decoded(self) -> int:
        """Tokens that it has produced in this engine, before it was paused."""
        return max(self.prepared.produced - len(self.prepared.generation.generated), 0)

    @property
    def output_tokens_max(self) -> int:
        """Tokens that the work may still produce."""
        return self.prepared.tokens_max - self.prepared.tokens_present


class Vacancy(msgspec.Struct, frozen=True):
    """What the engine has free: `slots_free` slots, for works of which each `fits` the free KV cache.

    `solo`: a solo work runs that has not produced its first token.
    """

    slots_free: int
    fits: Callable[[Prepared], bool]
    running: int
    prefill_tokens_pending: int
    prefill_tokens_max: int
    solo: bool = False

    @property
    def open(self) -> bool:
        """Whether anything at all may start."""
        pending = self.prefill_tokens_pending
        return not self.solo and self.slots_free > 0 and pending < self.prefill_tokens_max

    def admits(self, waiting: Waiting) -> bool:
        """Return whether this work may start."""
        return not (waiting.work.solo and self.running) and self.fits(waiting.prepared)


@dataclass(slots=True, eq=False)
class Lane:
    """The works of one account at one priority, oldest first. `served_s` is when the last of them was popped."""

    account: str
    priority: int
    works: OrderedDict[str, Waiting] = field(default_factory=OrderedDict)
    served_s: float = float("-inf")

    @property
    def head(self) -> Waiting:
        """The work to serve first. A lane in a queue is never empty."""
        return next(iter(self.works.values()))

    def level(self, now_s: float, ageing_s: float) -> int:
        """Return the priority plus the levels gained by waiting."""
        unserved_s = now_s - max(self.head.since_s, self.served_s)
        return self.priority + int(max(unserved_s, 0) / ageing_s)

    def copy(self) -> Lane:
        """Return a lane from which works can be popped without changing this one."""
        return Lane(self.account, self.priority, self.works.copy(), self.served_s)


class Lanes:
    """Waiting works by lane, and by lease. Every operation but `copy` takes constant time."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = {(lane.account, lane.priority): lane for lane in lanes}
        self.works = {lease: waiting for lane in lanes for lease, waiting in lane.works.items()}

    def add(self, waiting: Waiting) -> None:
        """Put a work at the end of its lane."""
        key = (waiting.work.account, waiting.work.priority)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(*key)
        lane.works[waiting.lease] = self.works[waiting.lease] = waiting

    def requeue(self, waiting: Waiting) -> None:
        """Put a paused work at the head of its lane, behind paused ones that are older."""
        self.add(waiting)
        works = self.lanes[waiting.work.account, waiting.work.priority].works
        older = [other.lease for other in works.values() if other.prepared.produced and other.number < waiting.number]
        for lease in (waiting.lease, *reversed(older)):
            works.move_to_end(lease, last=False)

    def remove(self, waiting: Waiting) -> None:
        """Remove a work from its lane, and a lane that is empty then."""
        key = (waiting.work.account, waiting.work.priority)
        lane = self.lanes[key]
        del lane.works[waiting.lease], self.works[waiting.lease]
        if not lane.works:
            del self.lanes[key]

    def copy(self) -> Lanes:
        """Return lanes from which works can be popped without changing these."""
        return Lanes([lane.copy() for lane in self.lanes.values()])


class Selection:
    """Pops works in the order of service at one moment; nothing else may change the lanes meanwhile.

    The caller may charge the ledger between two pops: that decides which account is next.
    """

    def __init__(self, lanes: Lanes, ledger: Ledger, schedule: Schedule, now_s: float) -> None:
        self._lanes = lanes
        self._ledger = ledger
        self._schedule = schedule
        self._now_s = now_s
        self._passed: list[Waiting] = []
        self._heap = [self._rank(lane, lane.level(now_s, schedule.priority_ageing_s)) for lane in lanes.lanes.values()]
        heapq.heapify(self._heap)

    def pop(self, vacancy: Vacancy | None) -> Waiting | None:
        """Pop the next work that may start in `vacancy` (None: in an engine without limits), or return None."""
        while self._heap and not self._blocked and (vacancy is None or vacancy.open):
            lane = self._first()
            waiting = lane.head
            if vacancy is None or vacancy.admits(waiting):
                for passed in self._passed:
                    passed.skips += 1
                self._serve(lane, waiting)
                return waiting
            heapq.heappop(self._heap)
            self._passed.append(waiting)
        return None

    @property
    def _blocked(self) -> bool:
        """Whether all must wait for a work that was passed often enough, or the search was long enough."""
        skips_max = self._schedule.queue_skips_max
        return len(self._passed) > LOOK_PAST_MAX or any(passed.skips >= skips_max for passed in self._passed)

    def _first(self) -> Lane:
        """Return the lane to serve next. Counters only grow, so a stale one is put right when it comes to the top."""
        while True:
            level, served, _, lane = self._heap[0]
            if self._ledger.served(lane.account) == served:
                return lane
            heapq.heapreplace(self._heap, self._rank(lane, -level))

    def _serve(self, lane: Lane, waiting: Waiting) -> None:
        self._lanes.remove(waiting)
        lane.served_s = self._now_s
        if lane.works:
            heapq.heapreplace(self._heap, self._rank(lane, lane.priority))
        else:
            heapq.heappop(self._heap)

    def _rank(self, lane: Lane, level: int) -> tuple[int, float, int, Lane]:
        # Numbers are unique, so lanes themselves are never compared.
        return -level, self._ledger.served(lane.account), lane.head.number, lane


class Policy:
    """The queue with its fairness. `revision` changes whenever the order of service may have changed."""

    def __init__(self, schedule: Schedule) -> None:
        self.ledger = Ledger()
        self.revision = 0
        self._schedule = schedule
        self._queue = Lanes([])
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._queue.works)

    def __contains__(self, lease: str) -> bool:
        return lease in self._queue.works

    def add(self, work: PreparedWork, prepared: Prepared, now_s: float) -> None:
        """Queue a work, as the engine has adopted it.

        The caller calls `release` when it has left the engine, unless it is removed before.
        """
        self._arrivals += 1
        self.revision += 1
        self.ledger.enter(work.account, work.weight)
        self._queue.add(Waiting(work, prepared, self._arrivals, now_s))

    def remove(self, lease: str) -> bool:
        """Remove a work from the queue; return whether it was there."""
        waiting = self._queue.works.get(lease)
        if waiting is None:
            return False
        self.revision += 1
        self._queue.remove(waiting)
        self.release(waiting.work)
        return True

    def prioritize(self, lease: str, priority: int, now_s: float) -> None:
        """Move a waiting work behind those that wait at `priority`. Unknown leases are ignored."""
        waiting = self._queue.works.get(lease)
        if waiting is None or waiting.work.priority == priority:
            return
        self.revision += 1
        self._queue.remove(waiting)
        waiting.work = msgspec.structs.replace(waiting.work, priority=priority)
        waiting.since_s = now_s
        self._queue.add(waiting)

    def pop(self, selection: Selection, vacancy: Vacancy) -> Waiting | None:
        """Pop the next work that may start in `vacancy`, or return None."""
        waiting = selection.pop(vacancy)
        self.revision += waiting is not None
        return waiting

    def requeue(self, waiting: Waiting, produced: int, now_s: float) -> None:
        """Let a work wait again, first in its lane: the engine paused it after `produced` output tokens.

        It is no longer under suspicion: it has had its steps.
        """
        self.revision += 1
        waiting.work = msgspec.structs.replace(waiting.work, solo=False)
        waiting.prepared = msgspec.structs.replace(waiting.prepared, produced=produced)
        waiting.since_s, waiting.skips = now_s, 0
        self._queue.requeue(waiting)

    def give_back(self, waiting: Waiting) -> None:
        """Let a work wait again, first in its lane: it was popped and cannot start yet."""
        self.revision += 1
        self._queue.requeue(waiting)

    def release(self, work: PreparedWork) -> None:
        """Forget a popped work: it has left the engine."""
        self.ledger.leave(work.account)

    def select(self, now_s: float) -> Selection:
        """Return the order of service at this moment, for `pop`. Costs time in proportion to the lanes."""
        return Selection(self._queue, self.ledger, self._schedule, now_s)

    def order(self, now_s: float) -> list[Waiting]:
        """Return all waiting works in the order in which they would be popped if all fitted and nothing was cached.

        Costs O(n log n): a few microseconds for each waiting work.
        """
        ledger, order = self.ledger.trial(), []
        selection = Selection(self._queue.copy(), ledger, self._schedule, now_s)
        while (waiting := selection.pop(None)) is not None:
            ledger.charge(waiting.work.account, prefilled=waiting.prefill_tokens)
            order.append(waiting)
        return order
