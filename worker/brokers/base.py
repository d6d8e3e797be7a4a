"""The broker port: carries work to an engine, wherever it runs, and its events back.

A broker keeps one promise: after `submit`, either the work's events arrive at the sink until it ends, or `on_lost`
tells the sink that an engine died with work in it. It never retries by itself: only the owner of the logs knows where
to resume. Work submitted while no engine is ready is kept until one is, also when loading fails (phase "failed"): then
the sink decides what to cancel.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import msgspec

from worker.engines.base import EngineInfo, LoadProgress
from worker.errors import Problem
from worker.scheduler.works import Batch, Stats, Work

Phase: TypeAlias = Literal["loading", "ready", "restarting", "failed", "closed"]


class EngineState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the engine stands.

    "loading" is the first load, "restarting" is from an engine's death until the next one is ready, "failed" is from a
    load that cannot succeed until one does (it is tried again now and then); `error` says why. `restarts` counts deaths
    of engines that were ready. `progress` is that of the load going on, `stats` are those of the last step.
    """

    phase: Phase
    info: EngineInfo | None = None
    progress: LoadProgress | None = None
    error: Problem | None = None
    stats: Stats | None = None
    restarts: int = 0
    pid: int | None = None


class Sink(Protocol):
    """What a broker calls, on the event loop's thread, never concurrently."""

    def on_batch(self, batch: Batch) -> None:
        """Take the events of one engine step, or those of it so far."""
        ...

    def on_lost(self, reason: str) -> None:
        """An engine that was ready died. All work submitted before is gone; submit again what is unfinished."""
        ...

    def on_state(self, state: EngineState) -> None:
        """The engine's phase, process or loading progress changed. Comes before `on_lost` when an engine died."""
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

    def cancel(self, lease: str) -> None:
        """Take work back; no event of it follows once the engine has heard it. Unknown ids are ignored."""
        ...

    def prioritize(self, lease: str, priority: int) -> None:
        """Change the priority of waiting work. Unknown ids are ignored."""
        ...

    async def run(self, sink: Sink) -> None:
        """Start the engine and keep one running until cancelled; then close it and leave no process behind."""
        ...
