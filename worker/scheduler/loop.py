"""The scheduler around one engine: works in, one batch of events per step out. No I/O, and no time but the clock's.

It runs in the engine process (`host`), and as it is in any other: `jobwire run` and the bare-engine benchmark use it
directly. All calls come from the one thread that owns the engine::

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

import msgspec

from worker.engines.base import Broke, Capacity, Delta, Engine, Paused, Prefilled, StepEvent
from worker.errors import EngineFailed, InvalidParams, JobwireError
from worker.scheduler.policy import Policy, Room, Waiting
from worker.scheduler.positions import Positions
from worker.scheduler.rates import Rates
from worker.scheduler.works import Batch, Refused, Schedule, Started, Stats, Work, WorkEvent

# Tokenizing a burst of prompts must not hold up the running works: so long per step, but at least one prompt.
PREPARE_S_PER_STEP = 0.005
# An engine that has room for nothing although it is empty has lost track of its memory. Some need steps to tidy up.
BARREN_STEPS_MAX = 100

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """A work in the engine: tokens of it still to prefill, and those produced here."""

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
        self._arrived: OrderedDict[str, Work] = OrderedDict()
        self._running: dict[str, _Running] = {}
        self._prefill_left = 0
        self._solo: str | None = None
        self._barren_steps = 0
        self._heard = self._told = 0

    # ---- commands; they act before the next step ---------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Take in a work. Its id must be unique among those that are here."""
        lease = work.generation.lease
        known = lease in self._arrived or lease in self._running or lease in self._policy
        assert not known, f"work {lease} is here already"
        self._heard += 1
        self._arrived[lease] = work

    def cancel(self, lease: str) -> None:
        """Forget a work, wherever it is; no event of it follows. Unknown ids are ignored."""
        self._heard += 1
        if self._arrived.pop(lease, None) is None:
            self._engine.leave(lease)  # one that waits may be paused in there
            if not self._policy.remove(lease) and lease in self._running:
                self._leave(lease)

    def prioritize(self, lease: str, priority: int) -> None:
        """Change the priority of a waiting work. Other ids are ignored."""
        self._heard += 1
        arrived = self._arrived.get(lease)
        if arrived is not None:
            self._arrived[lease] = msgspec.structs.replace(arrived, priority=priority)
        self._policy.prioritize(lease, priority, self._clock())

    # ---- stepping ----------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Tell whether `step` has nothing to do and nothing to say."""
        return not (self._arrived or self._running or len(self._policy) or self._heard != self._told)

    def step(self, tell: Callable[[Batch], None] | None = None) -> Batch | None:
        """Admit what may start, advance all by one step, return what happened; None when idle.

        With `tell`, what happens is handed to it in batches of their own before each work that is prepared or admitted,
        and before the engine computes with new ones: if one of them kills the engine, the other side knows which.
        """
        if self.idle:
            return None
        events: list[WorkEvent] = []

        def tell_all(handling: str = "") -> None:
            if tell is not None:
                tell(self._batch(events, handling))
                events.clear()

        self._prepare_arrived(events, tell_all)
        self._admit(events, tell_all)
        if any(isinstance(event, Started) for event in events):
            tell_all()
        self._advance(events)
        policy, now_s = self._policy, self._clock()
        events += self._positions.news(policy.revision, len(policy), lambda: policy.order(now_s), self._rates, now_s)
        self._told = self._heard
        return self._batch(events)

    def _prepare_arrived(self, events: list[WorkEvent], tell_all: Callable[[str], None]) -> None:
        until_s = self._clock() + PREPARE_S_PER_STEP
        while self._arrived:
            lease = next(iter(self._arrived))
            tell_all(lease)
            work = self._arrived.pop(lease)
            try:
                self._queue(work)
            except JobwireError as error:
                events.append(Refused(lease, error.problem()))
            except Exception as error:
                # Preparing touches no other sequence, so only this work has failed.
                log.exception("preparing work %s failed", lease)
                failed = EngineFailed(f"The prompt could not be prepared: {error}")
                events.append(Refused(lease, failed.problem()))
            if self._clock() >= until_s:
                break

    def _queue(self, work: Work) -> None:
        prepared = self._engine.prepare(work.generation)
        room = self._engine.capacity()
        empty = Capacity(
            room.slots_total, room.slots_total, room.kv_tokens_total, room.kv_tokens_total, room.kv_block_tokens
        )
        if not empty.fits(prepared.tokens_max):
            raise InvalidParams(
                f"Prompt and max_tokens together need {prepared.tokens_max} tokens of KV cache; this engine has "
                f"{room.kv_tokens_total} in all."
            )
        self._policy.add(work, prepared, self._clock())

    def _admit(self, events: list[WorkEvent], tell_all: Callable[[str], None]) -> None:
        if not len(self._policy) or not self._room().open:
            return
        turn = self._policy.turn(self._clock())
        while (waiting := self._policy.take(turn, self._room())) is not None:
            running = self._running[waiting.lease] = _Running(waiting, 0, waiting.decoded)
            tell_all(waiting.lease)
            cached = self._engine.admit(waiting.prepared)
            running.prefill_left = left = waiting.prefill_tokens - cached
            self._prefill_left += left
            self._policy.ledger.charge(running.account, prefilled=left)
            if waiting.work.solo:
                self._solo = waiting.lease
            prompt_tokens = len(waiting.prepared.prompt_ids)
            events.append(Started(waiting.lease, prompt_tokens, min(cached, prompt_tokens)))

    def _room(self) -> Room:
        return Room(
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
        """Book what one event says; return the tokens decoded and prefilled according to it."""
        match event:
            case Delta():
                prefilled, tokens = self._prefilled(running, 0), len(event.ids)
                running.decoded += tokens
                self._policy.ledger.charge(running.account, decoded=tokens)
                if event.lease == self._solo:
                    self._solo = None
                if event.finish is not None:
                    self._rates.finished(running.decoded)
                    self._leave(event.lease)
                return tokens, prefilled
            case Prefilled():
                return 0, self._prefilled(running, event.total - event.done)
            case Broke():
                self._leave(event.lease)
                return 0, 0
            case Paused():
                self._policy.put_back(self._out(event.lease), event.produced, self._clock())
                return 0, 0

    def _prefilled(self, running: _Running, left: int) -> int:
        done = running.prefill_left - left
        running.prefill_left = left
        self._prefill_left -= done
        return done

    def _leave(self, lease: str) -> None:
        self._policy.release(self._out(lease).work)

    def _out(self, lease: str) -> Waiting:
        """Forget that a work is in the engine; return what was admitted."""
        running = self._running.pop(lease)
        self._prefilled(running, 0)
        if lease == self._solo:
            self._solo = None
        return running.waiting

    def _batch(self, events: list[WorkEvent], handling: str = "") -> Batch:
        return Batch(tuple(events), self._stats(), self._heard, handling)

    def _stats(self) -> Stats:
        room, rates = self._engine.capacity(), self._rates
        return Stats(
            running=len(self._running),
            waiting=len(self._policy) + len(self._arrived),
            slots_total=room.slots_total,
            kv_tokens_used=room.kv_tokens_total - room.kv_tokens_free,
            kv_tokens_total=room.kv_tokens_total,
            step_ms=rates.step_ms,
            decode_tokens_per_s=rates.decode_tokens_per_s,
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
        )
