"""The broker port: carries work to an engine, wherever it runs, and its events back.

A broker keeps one promise: after `submit`, either the work's events arrive at the sink until it ends, or `on_lost`
reports that an engine died with work in it. It never retries by itself: only the owner of the logs knows where to
resume. Work submitted while no engine is ready is kept until one is, also when loading fails (phase "failed"): then the
sink decides which work to cancel.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from worker.brokers.phases import Phase
from worker.engines.base import EngineInfo, LoadProgress
from worker.errors import Problem
from worker.requests import Prompt, ResponseFormat
from worker.scheduler.works import Batch, Stats, Work


class PreparerState(msgspec.Struct, frozen=True, kw_only=True):
    """The process that prompts are read in (see `processes.preparer`), and the hands that it has forked.

    `memory_bytes` is that of all of them, measured every few seconds. `restarts` counts deaths of preparers that were
    loaded, `hand_deaths` hands that were replaced.
    """

    pid: int | None = None
    hands: tuple[int, ...] = ()
    memory_bytes: int | None = None
    restarts: int = 0
    hand_deaths: int = 0


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the engine stands: its phase (see `phases`) and what is known of it.

    `error` is why loading failed. `restarts` counts deaths of engines that were ready. `progress` is that of the
    current load, `stats` are those of the last step. `preparer` changes without notice.
    """

    phase: Phase
    info: EngineInfo | None = None
    progress: LoadProgress | None = None
    error: Problem | None = None
    stats: Stats | None = None
    restarts: int = 0
    pid: int | None = None
    preparer: PreparerState = PreparerState()


class Sink(Protocol):
    """What a broker calls, on the event loop's thread, never concurrently."""

    def on_batch(self, batch: Batch) -> None:
        """Receive the events of one engine step, or its events so far."""
        ...

    def on_prepared(self, lease: str, prompt_tokens: int, ids: bytes) -> None:
        """Learn that the prompt of a work is read: its token ids, packed as int32. Once per submission, before events.

        `ids` is empty for a work that was submitted with ids.
        """
        ...

    def on_refused(self, lease: str, error: Problem) -> None:
        """Learn that a work can never run, and why. It is gone."""
        ...

    def on_lost(self, reason: str) -> None:
        """Learn that an engine that was ready died. All work is gone; submit again what is unfinished."""
        ...

    def on_state(self, state: EngineState) -> None:
        """Learn that phase, process or loading progress changed. Comes before `on_lost` when an engine died."""
        ...


class Broker(Protocol):
    """Carries work to engines. All methods but `run` return at once."""

    @property
    def state(self) -> EngineState:
        """Where the engine stands now."""
        ...

    def submit(self, work: Work) -> None:
        """Hand over work; kept here in order until an engine is ready."""
        ...

    def refusal(self, prompt: Prompt, wanted: ResponseFormat) -> Problem | None:
        """Return why this very prompt or form was refused a moment ago, for its cost; None if it was not."""
        ...

    def cancel(self, lease: str) -> None:
        """Withdraw work; no event of it follows once the engine has received this. Unknown leases are ignored."""
        ...

    def prioritize(self, lease: str, priority: int) -> None:
        """Change the priority of waiting work. Unknown leases are ignored."""
        ...

    async def run(self, sink: Sink) -> None:
        """Start the engine and keep one running until cancelled; then close it and leave no process behind."""
        ...
