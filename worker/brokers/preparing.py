"""Has the prompts of works read by the hands of a preparer, which is kept running beside the engine.

Works wait here, by lane and turn, until an engine is ready and a hand is free. What a hand is dead of decides what
becomes of the work that it had: killed from outside, it is tried once more; anything else is the work's own doing, and
what was expensive is remembered and refused unread for a while.

A hand has timers of its own, but they fire only in a process that runs. One that was stopped, or hangs in the kernel,
is killed from here, and so is a preparer that does not replace a hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from worker.brokers.base import PreparerState
from worker.brokers.child_watch import restart_pause_s
from worker.brokers.lanes import LONG, SHORT, SHORT_BYTES_MAX, Entry, Lanes, size_bytes
from worker.brokers.preparer_process import HandConnection, PreparerProcess
from worker.brokers.refusals import OUTSIDE, Refusals, blame, form_digest, prompt_digest
from worker.brokers.watchdog import LOOKS, Watchdog
from worker.config import Settings
from worker.engines.base import Bounds
from worker.errors import ConfigError, ModelError, Problem
from worker.processes.child import FORKS
from worker.processes.memory import oom_kills, shared_out_bytes
from worker.processes.messages import (
    FormPassed,
    FromHand,
    Hand,
    LoadFailed,
    Made,
    OpenPreparer,
    Prepare,
    Refuse,
    SetBounds,
    TemplateFailed,
)
from worker.requests import Prompt, ResponseFormat
from worker.scheduler.works import Work

LANES = (SHORT, LONG)

DEAD_STARTS_MAX = 5
"""A preparer that dies while loading may have been unlucky; after this many in a row, something is wrong with it."""

SHORT_FORM_MS_MAX = 25.0
"""A form that takes longer to try keeps its works in the long lane: other hands have to compile it as well."""

KILLS_FORGIVEN = 1
"""A work is tried again after this many hands were killed from outside while they had it."""

SLACK_S = 5.0
"""How much longer than `prepare_timeout_s` a work may be in a hand, or a hand be missing. None that runs needs it."""

MEMORY_EVERY_S = 5.0
"""How often the memory of the preparer and its hands is measured."""

logger = logging.getLogger(__name__)


class Taker(Protocol):
    """What becomes of the works, and of the preparer. Called on the event loop's thread."""

    def on_made(self, made: Made, priority: int | None) -> None:
        """Receive a work that was read, and its new priority if that has changed meanwhile."""
        ...

    def on_refused(self, lease: str, error: Problem) -> None:
        """Learn that a work can never run, and why."""
        ...

    def on_preparer_loaded(self) -> None:
        """Learn that prompts can be read."""
        ...

    def on_preparer_failed(self, error: Problem) -> None:
        """Learn that prompts cannot be read, and why. Loading is tried again."""
        ...


class Preparing:
    """The works that wait for being read, and the preparer. `command` starts one."""

    def __init__(self, settings: Settings, command: Sequence[str], taker: Taker) -> None:
        self._settings = settings
        self._command = command
        self._taker = taker
        self._opening = OpenPreparer.of(settings)
        self._lanes = Lanes(len(LANES))
        self._hands: list[HandConnection | None] = [None for _ in LANES]
        # What a hand died of, until its connection is at its end, and the hand that follows it.
        self._ends: dict[HandConnection, tuple[int, int]] = {}
        self._next: dict[HandConnection, HandConnection] = {}
        self._refusals = Refusals(time.monotonic)
        self._bounds: Bounds | None = None
        self._oom_kills = oom_kills()
        self._dead_starts = 0
        self.state = PreparerState()
        self.loaded = False

    # ---- works -------------------------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Have a work read; kept until an engine is ready and a hand is free."""
        form = work.generation.sampling.response_format
        digest = b"" if form.type == "text" else form_digest(form)
        quick = size_bytes(work.generation) <= SHORT_BYTES_MAX and (not digest or self._refusals.harmless(digest))
        lane = SHORT if quick or not FORKS else LONG
        self._lanes.add(work, lane, digest)
        self._pump(lane)

    def cancel(self, lease: str) -> bool:
        """Forget a work; returns whether it was here."""
        return self._lanes.cancel(lease)

    def prioritize(self, lease: str, priority: int) -> bool:
        """Change the priority of a work; returns whether it was here."""
        return self._lanes.prioritize(lease, priority)

    def refusal(self, prompt: Prompt, wanted: ResponseFormat) -> Problem | None:
        """Return why this very prompt or form was refused a moment ago, None if it was not."""
        return self._refusals.find(prompt, wanted)

    def resume(self, bounds: Bounds) -> None:
        """Begin to hand out works, for an engine with these bounds."""
        self._bounds = bounds
        for hand in self._hands:
            if hand is not None:
                hand.send(SetBounds(bounds))
        for lane in LANES:
            self._pump(lane)

    def suspend(self) -> None:
        """Forget all works, because there is no engine, and hand out none until there is one."""
        self._bounds = None
        self._lanes.clear()

    def _pump(self, lane: int) -> None:
        """Give the hand of a lane the next work, if both are there."""
        hand = self._serving(lane)
        if self._bounds is None or hand is None:
            return
        entry = self._lanes.hand_over(lane)
        if entry is not None:
            tried = not entry.digest or self._refusals.harmless(entry.digest)
            entry.passed = tried
            hand.send(Prepare(entry.work, try_form=not tried))

    def _serving(self, lane: int) -> HandConnection | None:
        """Return the hand of a lane; None if the last one is dead, and the next one not there."""
        hand = self._hands[lane]
        return None if hand is None or not hand.open or hand in self._ends else hand

    # ---- what the preparer reports -----------------------------------------------------------------------------------

    def on_loaded(self) -> None:
        """Learn that the preparer is loaded."""
        self.loaded = True
        self._taker.on_preparer_loaded()

    def on_hand(self, hand: HandConnection, message: Hand) -> None:
        """Let a hand work, once all that the last one of its lane sent has been received."""
        last = self._hands[hand.lane]
        if last is None:
            self._settle(hand)
            return
        self._note(hand_deaths=self.state.hand_deaths + 1)
        logger.log(
            logging.WARNING if message.signal or message.exit_code else logging.DEBUG,
            "hand %d is replaced by %d: signal %d, exit code %d",
            *(last.pid, hand.pid, message.signal, message.exit_code),
        )
        # If a hand died before it could be that of its lane, it had no work: the end of the last one counts.
        self._ends.setdefault(last, (message.signal, message.exit_code))
        self._next[last] = hand
        if not last.open:
            self._bury(last)

    def on_hand_closed(self, hand: HandConnection) -> None:
        """Decide about the work in a dead hand, if what it died of is known."""
        if hand in self._ends:
            self._bury(hand)

    def on_answer(self, hand: HandConnection, message: FromHand) -> None:
        """Pass on what a hand has made of its work, and give it the next one."""
        if isinstance(message, FormPassed):
            self._on_passed(hand.lane, message)
            return
        entry, wanted = self._lanes.answered(hand.lane)
        if isinstance(message, Refuse) and message.culprit:
            self._remember(entry, message.culprit == "form", message.error)
        self._pump(hand.lane)
        if not wanted:
            return
        if isinstance(message, Made):
            priority = entry.work.priority
            self._taker.on_made(message, priority if priority != entry.priority_sent else None)
        else:
            self._taker.on_refused(message.lease, message.error)

    def _on_passed(self, lane: int, message: FormPassed) -> None:
        entry = self._lanes.in_hand(lane)
        if entry is not None:
            entry.passed = True
            if message.ms <= SHORT_FORM_MS_MAX:
                self._refusals.trust(entry.digest)

    def _settle(self, hand: HandConnection) -> None:
        """Make a hand that of its lane."""
        self._hands[hand.lane] = hand
        self._note_hands()
        if self._bounds is not None:
            hand.send(SetBounds(self._bounds))
        self._pump(hand.lane)

    def _bury(self, hand: HandConnection) -> None:
        """Decide about the work in a hand that is dead and has sent all, and let the next one work."""
        number, exit_code = self._ends.pop(hand)
        self._judge(hand.lane, number, exit_code)
        self._settle(self._next.pop(hand))

    def _judge(self, lane: int, number: int, exit_code: int) -> None:
        entry = self._lanes.in_hand(lane)
        if entry is None:
            return
        kills, self._oom_kills = self._oom_kills, oom_kills()
        memory_short = self._oom_kills > kills
        if number == exit_code == 0 or (number in OUTSIDE and not memory_short):
            entry.kills += number != 0
            if entry.kills <= KILLS_FORGIVEN:
                self._try_again(lane, entry)
                return
        error = blame(_pointer(entry), number, exit_code, self._opening.limits, memory_short=memory_short).problem()
        self._remember(entry, not entry.passed, error)
        _, wanted = self._lanes.answered(lane)
        if wanted:
            self._taker.on_refused(entry.work.generation.lease, error)

    def _try_again(self, lane: int, entry: Entry) -> None:
        if entry.place == "dropped":
            self._lanes.answered(lane)
        else:
            self._lanes.put_back(lane)

    def _remember(self, entry: Entry, form: bool, error: Problem) -> None:
        generation = entry.work.generation
        if form:
            self._refusals.remember(entry.digest, error)
        elif not generation.prompt_ids:
            self._refusals.remember(prompt_digest(generation.prompt), error)

    # ---- the preparer's life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a preparer running until cancelled. Raises ConfigError if the first one finds the template unusable."""
        starts_in_a_row, ever = 0, False
        while True:
            starts_in_a_row += 1
            try:
                process = await self._serve()
            except OSError as error:
                self._report_failure(f"no preparer can be started ({error})", None)
            else:
                if process.loaded:
                    ever, self._dead_starts = True, 0
                    logger.error("preparer %d is lost: %s", process.child.pid, process.reason)
                    self._note(restarts=self.state.restarts + 1)
                    if process.loaded_s > self._settings.engine_restart_backoff_max_s:
                        # One that was loaded for longer than the longest pause ends the row, and is replaced at once.
                        starts_in_a_row = 0
                elif isinstance(process.failure, TemplateFailed) and not ever:
                    raise ConfigError(process.failure.error.detail)
                else:
                    self._report_failure(process.reason, process.failure)
            await asyncio.sleep(self._pause_s(starts_in_a_row))

    async def _serve(self) -> PreparerProcess:
        """Start a preparer and serve with it until it is gone; return it, with the reason of its end."""
        try:
            async with PreparerProcess.start(self._command, self._opening, self) as process:
                self._note(pid=process.child.pid)
                try:
                    async with asyncio.timeout(self._settings.engine_start_timeout_s):
                        await process.settled.wait()
                except TimeoutError:
                    process.reason = f"it did not load in {self._settings.engine_start_timeout_s:g} s"
                else:
                    await self._watch(process)
        finally:
            self._abandon()
        return process

    async def _watch(self, process: PreparerProcess) -> None:
        """Wait until a preparer is gone. End a hand that is too long at one work, and all hands if one is missing."""
        limit_s = self._settings.prepare_timeout_s + SLACK_S
        watchdog = Watchdog(len(LANES))
        while not process.gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.gone.wait(), limit_s / LOOKS)
            for lane in LANES if FORKS else (SHORT,):
                hand = self._serving(lane)
                if not watchdog.overdue(lane, self._awaited(lane)):
                    continue
                if hand is None:
                    process.kill(f"it forked no hand in {limit_s:g} s")
                else:
                    logger.warning("hand %d is killed: it has had the same work for %g s", hand.pid, limit_s)
                    hand.kill()

    def _awaited(self, lane: int) -> object:
        """Return what happens next in a lane: that a hand comes, or that it answers; None for nothing."""
        hand, entry = self._serving(lane), self._lanes.in_hand(lane)
        if hand is None:
            return self._hands[lane] or "the first hand"
        return None if entry is None else (hand, entry)

    def _abandon(self) -> None:
        """Forget the hands of a preparer that is gone: what they had counts as killed from outside."""
        self.loaded = False
        for lane in LANES:
            self._hands[lane] = None
            self._judge(lane, OUTSIDE[0], 0)
        self._ends.clear()
        self._next.clear()
        self._note(pid=None, hands=(), memory_bytes=None)

    def _report_failure(self, reason: str, failure: LoadFailed | TemplateFailed | None) -> None:
        problem = failure.error if failure is not None else None
        logger.error("the preparer could not be started: %s", reason if problem is None else problem.detail)
        self._dead_starts += 1
        if problem is None and self._dead_starts >= DEAD_STARTS_MAX:
            problem = ModelError(f"Loading the preparer was tried {self._dead_starts} times: {reason}.").problem()
        if problem is not None:
            self._taker.on_preparer_failed(problem)

    def _pause_s(self, starts_in_a_row: int) -> float:
        return restart_pause_s(self._settings, starts_in_a_row) if starts_in_a_row else 0.0

    # ---- its facts ---------------------------------------------------------------------------------------------------

    async def measure(self) -> None:
        """Measure the memory every few seconds until cancelled."""
        while True:
            await asyncio.sleep(MEMORY_EVERY_S)
            # What the kernel killed long ago was no hand of now.
            self._oom_kills = oom_kills()
            if self.state.pid is not None:
                # Reading it walks page tables: some milliseconds, for large processes.
                self._note(memory_bytes=await asyncio.to_thread(shared_out_bytes, (self.state.pid, *self.state.hands)))

    def _note_hands(self) -> None:
        self._note(hands=tuple(hand.pid for hand in self._hands if hand is not None))

    def _note(self, **changes: object) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)


def _pointer(entry: Entry) -> str:
    """Return the field that a hand was reading when it died."""
    if not entry.passed:
        return "/response_format"
    return "/messages" if entry.work.generation.prompt.messages else "/prompt"
