"""Who is next: the order in which waiting works are given a place in the engine. Pure: time is passed in.

1. Higher priority first. A line (the works of one account at one priority) gains a level per `priority_ageing_s`
   seconds that it waits unserved, without limit, so that no flood of others can starve it.
2. On one level, the account who was served least goes first (see `fairness`), then the oldest work.
3. Within a line, first in, first out; a work that was paused for lack of KV cache is first again.
4. A work that does not fit is passed by at most `queue_skips_max` others; then all wait until it fits.
5. Nothing starts while the prompt tokens still to be prefilled fill a whole step: long prompts enter one at a time.
6. A solo work starts when nothing runs, and nothing starts beside it until its first token.

One `Turn` applies all this at one moment. Admission and the queue positions told to clients both use it, so that the
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
from worker.scheduler.works import Schedule, Work

# Lines that do not fit and are looked past in one turn: bounds the search, and with it the step.
LOOK_PAST_MAX = 32


@dataclass(slots=True, eq=False)
class Waiting:
    """A work in the queue: `number` is its place in the order of arrival, `skips` how often others passed it."""

    work: Work
    prepared: Prepared
    number: int
    since_s: float
    skips: int = 0

    @property
    def lease(self) -> str:
        """The work's id."""
        return self.prepared.lease

    @property
    def prefill_tokens(self) -> int:
        """Tokens to compute before the next one can be sampled: prompt and output so far."""
        return self.prepared.tokens_present

    @property
    def decoded(self) -> int:
        """Tokens that it has produced in this engine, before it was paused."""
        return max(self.prepared.produced - len(self.work.generation.generated), 0)

    @property
    def output_tokens_max(self) -> int:
        """Tokens that the work may still produce."""
        return self.prepared.tokens_max - self.prepared.tokens_present


class Room(msgspec.Struct, frozen=True):
    """What the engine could take now: so many works, and of them each that `fits` its KV cache.

    `solo` says that a solo work runs that has not shown its first token.
    """

    slots_free: int
    fits: Callable[[Prepared], bool]
    running: int
    prefill_tokens_pending: int
    prefill_tokens_max: int
    solo: bool = False

    @property
    def open(self) -> bool:
        """Tell whether anything at all may start."""
        pending = self.prefill_tokens_pending
        return not self.solo and self.slots_free > 0 and pending < self.prefill_tokens_max

    def takes(self, waiting: Waiting) -> bool:
        """Tell whether this work may start."""
        return not (waiting.work.solo and self.running) and self.fits(waiting.prepared)


@dataclass(slots=True, eq=False)
class Line:
    """The works of one account at one priority, oldest first. `served_s` is when the last of them was taken."""

    account: str
    priority: int
    works: OrderedDict[str, Waiting] = field(default_factory=OrderedDict)
    served_s: float = float("-inf")

    @property
    def head(self) -> Waiting:
        """The work to serve first. A line in a queue is never empty."""
        return next(iter(self.works.values()))

    def level(self, now_s: float, ageing_s: float) -> int:
        """Return the priority with what was gained by waiting."""
        unserved_s = now_s - max(self.head.since_s, self.served_s)
        return self.priority + int(max(unserved_s, 0) / ageing_s)

    def copy(self) -> Line:
        """Return a line to take works from without touching this one."""
        return Line(self.account, self.priority, self.works.copy(), self.served_s)


class Queue:
    """Waiting works by line, and by id. Every operation but `copy` takes constant time."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = {(line.account, line.priority): line for line in lines}
        self.works = {lease: waiting for line in lines for lease, waiting in line.works.items()}

    def add(self, waiting: Waiting) -> None:
        """Put a work at the end of its line."""
        key = (waiting.work.account, waiting.work.priority)
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(*key)
        line.works[waiting.lease] = self.works[waiting.lease] = waiting

    def put_back(self, waiting: Waiting) -> None:
        """Put a paused work at the head of its line, behind paused ones that are older."""
        self.add(waiting)
        works = self.lines[waiting.work.account, waiting.work.priority].works
        older = [other.lease for other in works.values() if other.prepared.produced and other.number < waiting.number]
        for lease in (waiting.lease, *reversed(older)):
            works.move_to_end(lease, last=False)

    def remove(self, waiting: Waiting) -> None:
        """Take a work out of its line; without works the line is gone."""
        key = (waiting.work.account, waiting.work.priority)
        line = self.lines[key]
        del line.works[waiting.lease], self.works[waiting.lease]
        if not line.works:
            del self.lines[key]

    def copy(self) -> Queue:
        """Return a queue to take works from without touching this one."""
        return Queue([line.copy() for line in self.lines.values()])


class Turn:
    """Takes works out of a queue in the order of service at one moment; nothing else may change the queue meanwhile.

    Charging the ledger between two takes is expected: it decides whose turn it is next.
    """

    def __init__(self, queue: Queue, ledger: Ledger, schedule: Schedule, now_s: float) -> None:
        self._queue = queue
        self._ledger = ledger
        self._schedule = schedule
        self._now_s = now_s
        self._passed: list[Waiting] = []
        lines = queue.lines.values()
        self._heap = [self._rank(line, line.level(now_s, schedule.priority_ageing_s)) for line in lines]
        heapq.heapify(self._heap)

    def take(self, room: Room | None) -> Waiting | None:
        """Take the next work that may start in `room` (None: in an engine without limits), or return None."""
        while self._heap and not self._blocked and (room is None or room.open):
            line = self._first()
            waiting = line.head
            if room is None or room.takes(waiting):
                for passed in self._passed:
                    passed.skips += 1
                self._serve(line, waiting)
                return waiting
            heapq.heappop(self._heap)
            self._passed.append(waiting)
        return None

    @property
    def _blocked(self) -> bool:
        """Tell whether all must wait for a work that was passed often enough, or the search was long enough."""
        skips_max = self._schedule.queue_skips_max
        return len(self._passed) > LOOK_PAST_MAX or any(passed.skips >= skips_max for passed in self._passed)

    def _first(self) -> Line:
        """Return the line to serve next. Counters only grow, so a stale one is put right when it comes to the top."""
        while True:
            level, served, _, line = self._heap[0]
            if self._ledger.served(line.account) == served:
                return line
            heapq.heapreplace(self._heap, self._rank(line, -level))

    def _serve(self, line: Line, waiting: Waiting) -> None:
        self._queue.remove(waiting)
        line.served_s = self._now_s
        if line.works:
            heapq.heapreplace(self._heap, self._rank(line, line.priority))
        else:
            heapq.heappop(self._heap)

    def _rank(self, line: Line, level: int) -> tuple[int, float, int, Line]:
        # Numbers are unique, so lines themselves are never compared.
        return -level, self._ledger.served(line.account), line.head.number, line


class Policy:
    """The queue with its fairness. `revision` changes whenever the order of service may have changed."""

    def __init__(self, schedule: Schedule) -> None:
        self.ledger = Ledger()
        self.revision = 0
        self._schedule = schedule
        self._queue = Queue([])
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._queue.works)

    def __contains__(self, lease: str) -> bool:
        return lease in self._queue.works

    def add(self, work: Work, prepared: Prepared, now_s: float) -> None:
        """Queue a work. The caller calls `release` when it has left the engine, unless it is removed before."""
        self._arrivals += 1
        self.revision += 1
        self.ledger.enter(work.account, work.weight)
        self._queue.add(Waiting(work, prepared, self._arrivals, now_s))

    def remove(self, lease: str) -> bool:
        """Take a work out of the queue; tell whether it was in there."""
        waiting = self._queue.works.get(lease)
        if waiting is None:
            return False
        self.revision += 1
        self._queue.remove(waiting)
        self.release(waiting.work)
        return True

    def prioritize(self, lease: str, priority: int, now_s: float) -> None:
        """Move a waiting work behind those that wait at `priority`. Unknown ids are ignored."""
        waiting = self._queue.works.get(lease)
        if waiting is None or waiting.work.priority == priority:
            return
        self.revision += 1
        self._queue.remove(waiting)
        waiting.work = msgspec.structs.replace(waiting.work, priority=priority)
        waiting.since_s = now_s
        self._queue.add(waiting)

    def take(self, turn: Turn, room: Room) -> Waiting | None:
        """Take the next work that may start in `room` out of the queue, or return None."""
        waiting = turn.take(room)
        self.revision += waiting is not None
        return waiting

    def put_back(self, waiting: Waiting, produced: int, now_s: float) -> None:
        """Let a work that was taken wait again, first in its line: it is paused, after `produced` output tokens.

        It is under no suspicion any more: it has had its steps.
        """
        self.revision += 1
        waiting.work = msgspec.structs.replace(waiting.work, solo=False)
        waiting.prepared = msgspec.structs.replace(waiting.prepared, produced=produced)
        waiting.since_s, waiting.skips = now_s, 0
        self._queue.put_back(waiting)

    def release(self, work: Work) -> None:
        """A work that was taken has left the engine."""
        self.ledger.leave(work.account)

    def turn(self, now_s: float) -> Turn:
        """Return the order of service at this moment, for `take`. Costs time in proportion to the lines."""
        return Turn(self._queue, self.ledger, self._schedule, now_s)

    def order(self, now_s: float) -> list[Waiting]:
        """Return all waiting works in the order in which they would be taken now, if all fitted and nothing was cached.

        Costs O(n log n): a few microseconds for each waiting work.
        """
        ledger, order = self.ledger.trial(), []
        turn = Turn(self._queue.copy(), ledger, self._schedule, now_s)
        while (waiting := turn.take(None)) is not None:
            ledger.charge(waiting.work.account, prefilled=waiting.prefill_tokens)
            order.append(waiting)
        return order
