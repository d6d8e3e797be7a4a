"""The scheduler around one engine: works in, one batch of events per step out. No I/O, and no time but the clock's.

It runs in the engine process (`processes.engine`), and unchanged in any other: `jobwire run` and the bare-engine
benchmark use it directly. All calls come from the one thread that owns the engine::

    loop = Loop(engine, Schedule())
    loop.submit(work)
    while (batch := loop.step()) is not None:
        ...

An exception out of `step` means that the engine is broken (a sequence that fails alone is a `Broke`): the loop and its
engine are not used afterwards.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from worker.engines.base import Broke, Delta, Engine, Paused, Prefilled, Prepared, StepEvent
from worker.errors import EngineFailed, InvalidParams, JobwireError, Problem
from worker.scheduler.policy import Policy, Vacancy, Waiting
from worker.scheduler.positions import Positions
from worker.scheduler.rates import Rates
from worker.scheduler.works import Batch, Refused, Schedule, Started, Stats, Work, WorkEvent

PREPARE_S_PER_STEP = 0.005
"""Time for tokenizing prompts in one step, at least one of them: a burst must not hold up the running works."""

BARREN_STEPS_MAX = 100
"""An empty engine without room for any work has lost track of its memory. Some need steps to tidy up first."""

logger = logging.getLogger(__name__)


class _Place(Enum):
    """Where a work is, from `submit` to its end."""

    ARRIVED = auto()
    """In the loop, not yet prepared."""

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


class Loop:
    """Queue, policy and engine. `clock` gives seconds that never go back."""

    def __init__(self, engine: Engine, schedule: Schedule, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._schedule = schedule
        self._clock = clock
        self._policy = Policy(schedule)
        self._positions = Positions(schedule.queue_news_ms)
        self._rates = Rates()
        self._places: dict[str, _Place] = {}
        self._arrived: OrderedDict[str, Work] = OrderedDict()
        self._running: dict[str, _Running] = {}
        self._prefill_left = 0
        self._solo: str | None = None
        self._barren_steps = 0
        self._commands_received = self._commands_answered = 0

    # ---- commands; they act before the next step ---------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Accept a work. Its lease must be unique among those that are here."""
        lease = work.generation.lease
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
            case _Place.QUEUED | _Place.PAUSED:
                self._policy.prioritize(lease, priority, self._clock())

    # ---- stepping ----------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether `step` has nothing to do and nothing to report."""
        return not self._places and self._commands_received == self._commands_answered

    def step(self, send: Callable[[Batch], None] | None = None) -> Batch | None:
        """Admit the works that may start, advance all by one step, return what happened; None when idle.

        With `send`, events are sent in batches of their own before each work that is prepared or admitted, and before
        the engine computes with new ones: if one of them kills the engine, the receiver knows which.
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

        self._prepare_arrived(events, send_all)
        self._admit(events, send_all)
        if handled:
            # It is done with: the engine computes, and an end of it now is of those that run.
            send_all()
        self._advance(events)
        policy, now_s = self._policy, self._clock()
        events += self._positions.changes(policy.revision, len(policy), lambda: policy.order(now_s), self._rates, now_s)
        self._commands_answered = self._commands_received
        return self._batch(events)

    def _prepare_arrived(self, events: list[WorkEvent], send_all: Callable[[str], None]) -> None:
        until_s = self._clock() + PREPARE_S_PER_STEP
        while self._arrived:
            lease = next(iter(self._arrived))
            send_all(lease)
            work = self._arrived.pop(lease)
            problem = self._queue(work)
            if problem is None:
                self._places[lease] = _Place.QUEUED
            else:
                del self._places[lease]
                events.append(Refused(lease, problem))
            if self._clock() >= until_s:
                break

    def _queue(self, work: Work) -> Problem | None:
        """Prepare a work and queue it; return why that is impossible."""
        try:
            prepared = self._engine.prepare(work.generation)
            self._check_size(prepared)
        except JobwireError as error:
            return error.problem()
        except Exception as error:
            # Preparing touches no other sequence, so only this work has failed.
            logger.exception("preparing work %s failed", work.generation.lease)
            return EngineFailed(f"The prompt could not be prepared: {error}").problem()
        self._policy.add(work, prepared, self._clock())
        return None

    def _check_size(self, prepared: Prepared) -> None:
        now = self._engine.capacity()
        empty = msgspec.structs.replace(now, slots_free=now.slots_total, kv_tokens_free=now.kv_tokens_total)
        if not empty.fits(prepared.tokens_max):
            raise InvalidParams(
                f"Prompt and max_tokens together need {prepared.tokens_max} tokens of KV cache; this engine has "
                f"{now.kv_tokens_total} in all."
            )

    def _admit(self, events: list[WorkEvent], send_all: Callable[[str], None]) -> None:
        if not len(self._policy) or not self._vacancy().open:
            return
        selection = self._policy.select(self._clock())
        while (waiting := self._policy.pop(selection, self._vacancy())) is not None:
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
        self._rates.step(self._clock() - begun_s, decoded, prefilled)

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
            waiting=len(self._policy) + len(self._arrived),
            slots_total=capacity.slots_total,
            kv_tokens_used=capacity.kv_tokens_total - capacity.kv_tokens_free,
            kv_tokens_total=capacity.kv_tokens_total,
            step_ms=rates.step_ms,
            decode_tokens_per_s=rates.decode_tokens_per_s,
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
        )
