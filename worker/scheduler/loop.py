"""The scheduler around one engine: works in, one batch of events per step out. No I/O, and no time but the clock's.

It runs in the engine process (`processes.engine`), and unchanged in any other: `jobwire run` and the bare-engine
benchmark use it directly. All calls come from the one thread that owns the engine::

    loop = Loop(engine, Schedule())
    loop.submit(PreparedWork(prepared=engine.reader.prepare(generation, engine.info.bounds)))
    while (batch := loop.step()) is not None:
        ...

Nothing new is rendered, tokenized or compiled in a step. A form that the engine does not have yet is compiled beside
the steps, and its work enters the queue when that is done.

An exception out of `step` means that the engine is broken (a sequence that fails alone is a `Broke`): the loop and its
engine are not used afterwards.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from worker.engines.base import Broke, Delta, Engine, Paused, Prefilled, Prepared, StepEvent
from worker.errors import EngineFailed, JobwireError
from worker.requests import ResponseFormat
from worker.scheduler.policy import Policy, Vacancy, Waiting
from worker.scheduler.positions import Positions
from worker.scheduler.rates import Rates
from worker.scheduler.works import Batch, PreparedWork, Refused, Schedule, Started, Stats, WorkEvent

ADOPT_S_PER_STEP = 0.005
"""Time for queueing works in one step, at least one of them: a burst must not hold up the running works."""

BARREN_STEPS_MAX = 100
"""An empty engine without room for any work has lost track of its memory. Some need steps to tidy up first."""

logger = logging.getLogger(__name__)


class _Place(Enum):
    """Where a work is, from `submit` to its end."""

    ARRIVED = auto()
    """In the loop, not yet looked at."""

    FORMING = auto()
    """Its form is being compiled, beside the steps."""

    QUEUED = auto()
    """In the policy's queue."""

    RUNNING = auto()
    """In the engine's batch."""

    PAUSED = auto()
    """In the policy's queue again, and kept by the engine."""


@dataclass(slots=True)
class _Running:
    """A work in the engine's batch: tokens of it still to prefill, and those produced here."""

    waiting: Waiting
    prefill_left: int
    decoded: int = 0

    @property
    def account(self) -> str:
        return self.waiting.work.account


@dataclass(slots=True)
class _Forming:
    """A work whose form is being compiled. `waiting` is its entry in the queue, where it was before."""

    work: PreparedWork
    compiled: Future[None]
    waiting: Waiting | None = None


class Loop:
    """Queue, policy and engine. `clock` gives seconds that never go back.

    `wake` is called in another thread when `step` has something to do again after it was `at_rest`.
    """

    def __init__(
        self,
        engine: Engine,
        schedule: Schedule,
        clock: Callable[[], float] = time.monotonic,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._schedule = schedule
        self._clock = clock
        self._wake = wake
        self._policy = Policy(schedule)
        self._positions = Positions(schedule.queue_news_ms)
        self._rates = Rates()
        self._places: dict[str, _Place] = {}
        self._arrived: OrderedDict[str, PreparedWork] = OrderedDict()
        self._forming: dict[str, _Forming] = {}  # in order of arrival
        self._running: dict[str, _Running] = {}
        self._prefill_left = 0
        self._solo: str | None = None
        self._barren_steps = 0
        self._commands_received = self._commands_answered = 0

    # ---- commands; they act before the next step ---------------------------------------------------------------------

    def submit(self, work: PreparedWork) -> None:
        """Accept a work. Its lease must be unique among those that are here."""
        lease = work.prepared.lease
        assert lease not in self._places, f"work {lease} is here already"
        self._commands_received += 1
        self._places[lease] = _Place.ARRIVED
        self._arrived[lease] = work

    def cancel(self, lease: str) -> None:
        """Forget a work, wherever it is; no event of it follows. Unknown leases are ignored."""
        self._commands_received += 1
        match self._places.get(lease):
            case _Place.ARRIVED:
                del self._places[lease], self._arrived[lease]
            case _Place.FORMING:
                self._unform(lease)
            case _Place.QUEUED:
                self._dequeue(lease)
            case _Place.RUNNING:
                self._engine.leave(lease)
                self._end(lease)
            case _Place.PAUSED:
                self._engine.leave(lease)
                self._dequeue(lease)

    def prioritize(self, lease: str, priority: int) -> None:
        """Change the priority of a waiting work. Other leases are ignored."""
        self._commands_received += 1
        match self._places.get(lease):
            case _Place.ARRIVED:
                self._arrived[lease] = msgspec.structs.replace(self._arrived[lease], priority=priority)
            case _Place.FORMING:
                forming = self._forming[lease]
                forming.work = msgspec.structs.replace(forming.work, priority=priority)
            case _Place.QUEUED | _Place.PAUSED:
                self._policy.prioritize(lease, priority, self._clock())

    # ---- stepping ----------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether `step` has nothing to do and nothing to report."""
        return not self._places and self._commands_received == self._commands_answered

    @property
    def at_rest(self) -> bool:
        """Whether `step` has nothing to do until a command comes or a form is compiled."""
        answered = self._commands_received == self._commands_answered
        only_forming = len(self._forming) == len(self._places)
        return answered and only_forming and not any(each.compiled.done() for each in self._forming.values())

    def step(self, send: Callable[[Batch], None] | None = None) -> Batch | None:
        """Admit the works that may start, advance all by one step, return what happened; None when idle.

        With `send`, events are sent in batches of their own before each work that is admitted, and before the engine
        computes with new ones: if one of them kills the engine, the receiver knows which. Where only forms are compiled
        it waits for one of them, so that a caller without `wake` does not spin.
        """
        if self.idle:
            return None
        events: list[WorkEvent] = []

        handled = ""

        def send_all(handling: str = "") -> None:
            nonlocal handled
            if send is not None:
                handled = handling
                send(self._batch(events, handling))
                events.clear()

        if self.at_rest:
            wait([forming.compiled for forming in self._forming.values()], return_when=FIRST_COMPLETED)
        self._queue_formed(events)
        self._queue_arrived(events)
        self._admit(events, send_all)
        if handled:
            # It is done with: the engine computes, and an end of it now is of those that run.
            send_all()
        self._advance(events)
        policy, now_s = self._policy, self._clock()
        events += self._positions.changes(policy.revision, len(policy), lambda: policy.order(now_s), self._rates, now_s)
        self._commands_answered = self._commands_received
        return self._batch(events, "" if self._running else next(iter(self._forming), ""))

    def _queue_arrived(self, events: list[WorkEvent]) -> None:
        until_s = self._clock() + ADOPT_S_PER_STEP
        while self._arrived:
            lease, work = self._arrived.popitem(last=False)
            try:
                work = msgspec.structs.replace(work, prepared=self._engine.adopt(work.prepared))
            except Exception as error:
                # Nothing is reserved and no other sequence touched, so only this work has failed.
                logger.exception("adopting work %s failed", lease)
                self._refuse(lease, EngineFailed(f"The engine cannot adopt the prompt: {error}"), events)
                continue
            if self._engine.forms.ready(_wanted(work.prepared)):
                self._enqueue(lease, work)
            else:
                self._form(lease, work)
            if self._clock() >= until_s:
                break

    def _form(self, lease: str, work: PreparedWork, waiting: Waiting | None = None) -> None:
        """Compile the form of a work beside the steps."""
        compiled = self._engine.forms.compile_beside(_wanted(work.prepared))
        self._places[lease] = _Place.FORMING
        self._forming[lease] = _Forming(work, compiled, waiting)
        compiled.add_done_callback(lambda _: self._wake())

    def _queue_formed(self, events: list[WorkEvent]) -> None:
        """Queue the works whose forms are compiled by now."""
        for lease, forming in [(lease, forming) for lease, forming in self._forming.items() if forming.compiled.done()]:
            del self._forming[lease]
            error = forming.compiled.exception()
            if error is not None:
                if forming.waiting is not None:
                    self._policy.release(forming.work)
                if not isinstance(error, JobwireError):
                    logger.error("compiling the form of work %s failed", lease, exc_info=error)
                    error = EngineFailed(f"The form could not be compiled: {error}")
                self._refuse(lease, error, events)
            elif forming.waiting is None:
                self._enqueue(lease, forming.work)
            else:
                forming.waiting.work = forming.work
                self._policy.give_back(forming.waiting)
                self._places[lease] = _Place.QUEUED

    def _enqueue(self, lease: str, work: PreparedWork) -> None:
        self._policy.add(work, work.prepared, self._clock())
        self._places[lease] = _Place.QUEUED

    def _refuse(self, lease: str, error: JobwireError, events: list[WorkEvent]) -> None:
        del self._places[lease]
        events.append(Refused(lease, error.problem()))

    def _unform(self, lease: str) -> None:
        """Forget a work whose form is being compiled."""
        forming = self._forming.pop(lease)
        del self._places[lease]
        forming.compiled.cancel()
        if forming.waiting is not None:
            self._policy.release(forming.work)

    def _admit(self, events: list[WorkEvent], send_all: Callable[[str], None]) -> None:
        if not len(self._policy) or not self._vacancy().open:
            return
        selection = self._policy.select(self._clock())
        while (waiting := self._policy.pop(selection, self._vacancy())) is not None:
            if self._places[waiting.lease] is _Place.QUEUED and not self._engine.forms.ready(_wanted(waiting.prepared)):
                # Others have taken the place of its form meanwhile.
                self._form(waiting.lease, waiting.work, waiting)
                continue
            if not self._running:
                self._rates.begun()
            running = self._running[waiting.lease] = _Running(waiting, 0, waiting.decoded)
            self._places[waiting.lease] = _Place.RUNNING
            send_all(waiting.lease)
            cached = self._engine.admit(waiting.prepared)
            running.prefill_left = left = waiting.prefill_tokens - cached
            self._prefill_left += left
            self._policy.ledger.charge(running.account, prefilled=left)
            if waiting.work.solo:
                self._solo = waiting.lease
            prompt_tokens = len(waiting.prepared.prompt_ids)
            events.append(Started(waiting.lease, prompt_tokens, min(cached, prompt_tokens)))

    def _vacancy(self) -> Vacancy:
        return Vacancy(
            slots_free=self._engine.capacity().slots_free,
            fits=self._engine.fits,
            running=len(self._running),
            prefill_tokens_pending=self._prefill_left,
            prefill_tokens_max=self._schedule.prefill_tokens_per_step,
            solo=self._solo is not None,
        )

    def _advance(self, events: list[WorkEvent]) -> None:
        if not self._running and not len(self._policy):
            return
        self._barren_steps = 0 if self._running else self._barren_steps + 1
        assert self._barren_steps <= BARREN_STEPS_MAX, f"the empty engine has no room: {self._engine.capacity()}"
        begun_s, decoded, prefilled = self._clock(), 0, 0
        for event in self._engine.step(self._schedule.prefill_tokens_per_step):
            running = self._running.get(event.lease)
            if running is not None:
                events.append(event)
                more_decoded, more_prefilled = self._account(running, event)
                decoded += more_decoded
                prefilled += more_prefilled
        now_s = self._clock()
        self._rates.step(now_s - begun_s, decoded, prefilled)
        self._rates.stepped(now_s)

    def _account(self, running: _Running, event: StepEvent) -> tuple[int, int]:
        """Update the books by one event; return the tokens that were decoded and prefilled according to it."""
        match event:
            case Delta():
                prefilled, tokens = self._prefilled(running, 0), len(event.ids)
                running.decoded += tokens
                self._policy.ledger.charge(running.account, decoded=tokens)
                if event.lease == self._solo:
                    self._solo = None
                if event.finish is not None:
                    self._rates.finished(running.decoded)
                    self._end(event.lease)
                return tokens, prefilled
            case Prefilled():
                return 0, self._prefilled(running, event.total - event.done)
            case Broke():
                self._end(event.lease)
                return 0, 0
            case Paused():
                self._policy.requeue(self._remove_running(event.lease), event.produced, self._clock())
                self._places[event.lease] = _Place.PAUSED
                return 0, 0

    def _prefilled(self, running: _Running, left: int) -> int:
        done = running.prefill_left - left
        running.prefill_left = left
        self._prefill_left -= done
        return done

    def _dequeue(self, lease: str) -> None:
        """Forget a work that waits in the queue."""
        del self._places[lease]
        self._policy.remove(lease)

    def _end(self, lease: str) -> None:
        """Forget a work that was running."""
        del self._places[lease]
        self._policy.release(self._remove_running(lease).work)

    def _remove_running(self, lease: str) -> Waiting:
        """Remove a work from the running ones; return what was admitted."""
        running = self._running.pop(lease)
        self._prefilled(running, 0)
        if lease == self._solo:
            self._solo = None
        return running.waiting

    def _batch(self, events: list[WorkEvent], handling: str = "") -> Batch:
        return Batch(tuple(events), self._stats(), self._commands_received, handling)

    def _stats(self) -> Stats:
        capacity, rates = self._engine.capacity(), self._rates
        return Stats(
            running=len(self._running),
            waiting=len(self._policy) + len(self._arrived) + len(self._forming),
            slots_total=capacity.slots_total,
            kv_tokens_used=capacity.kv_tokens_total - capacity.kv_tokens_free,
            kv_tokens_total=capacity.kv_tokens_total,
            step_ms=rates.step_ms,
            step_gap_ms=rates.step_gap_ms,
            decode_tokens_per_s=rates.decode_tokens_per_s,
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
        )


def _wanted(prepared: Prepared) -> ResponseFormat:
    return prepared.generation.sampling.response_format
