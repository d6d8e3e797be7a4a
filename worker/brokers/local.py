"""Keeps one engine process on this machine running: started, replaced when it dies, closed with the gateway.

Works submitted while no engine is ready are held here, in order. When an engine that was ready dies, the sink is called
(`on_lost`) and submits again what is to go on. When an engine cannot even be loaded, nothing is lost: the phase is
"failed", the sink decides about the works that wait, and loading is tried again, for the file may be repaired.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from worker.brokers.base import EngineState, Sink
from worker.brokers.engine_process import EngineProcess
from worker.brokers.phases import Happening, next_phase
from worker.config import Settings
from worker.engines.base import EngineInfo, LoadProgress
from worker.errors import ModelError, Problem
from worker.processes.child import ENGINE_COMMAND
from worker.processes.messages import Cancel, Loaded, Loading, Open, Prioritize, Submit, Up
from worker.scheduler.works import Batch, Work

DEAD_STARTS_MAX = 5
"""An engine that dies while loading may have been unlucky; after this many in a row, something is wrong with it."""

logger = logging.getLogger(__name__)


class LocalBroker:
    """Implements the broker port. `command` starts an engine process: fd and parent pid are appended to it."""

    def __init__(self, settings: Settings, command: Sequence[str] = ENGINE_COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._state = EngineState(phase="loading")
        self._held: dict[str, Work] = {}
        self._engine: EngineProcess | None = None
        self._dead_starts = 0

    @property
    def state(self) -> EngineState:
        """Where the engine stands now."""
        return self._state

    def submit(self, work: Work) -> None:
        """Hand over work; held until an engine is ready."""
        if self._engine is None:
            self._held[work.generation.lease] = work
        else:
            self._engine.command(Submit(work))

    def cancel(self, lease: str) -> None:
        """Withdraw work. Unknown leases are ignored."""
        if self._held.pop(lease, None) is None and self._engine is not None:
            self._engine.command(Cancel(lease))

    def prioritize(self, lease: str, priority: int) -> None:
        """Change the priority of waiting work. Unknown leases are ignored."""
        held = self._held.get(lease)
        if held is not None:
            self._held[lease] = msgspec.structs.replace(held, priority=priority)
        elif self._engine is not None:
            self._engine.command(Prioritize(lease, priority))

    async def run(self, sink: Sink) -> None:
        """Keep an engine process running until cancelled; then close it and leave no process behind."""
        starts_in_a_row = 0
        try:
            while True:
                starts_in_a_row += 1
                try:
                    process = await self._serve(sink)
                except OSError as error:
                    self._report_start_failed(sink, f"no engine process can be started ({error})", None)
                else:
                    if process.ready_s > self._settings.engine_restart_backoff_max_s:
                        # One that was ready for longer than the longest pause ends the row.
                        starts_in_a_row = 1
                    self._report_end(sink, process)
                await asyncio.sleep(self._pause_s(starts_in_a_row))
        finally:
            self._engine = None
            self._report(sink, "closed")

    async def _serve(self, sink: Sink) -> EngineProcess:
        """Start an engine process and serve with it until it is gone; return it, with the reason of its end."""
        async with EngineProcess.start(self._command, Open.of(self._settings), self._settings) as process:
            self._report(sink, "started", pid=process.child.pid)
            await process.receive(lambda message: self._on_message(sink, process, message))
            self._engine = None
        return process

    def _on_message(self, sink: Sink, process: EngineProcess, message: Up) -> None:
        # LoadFailed is kept in `process.problem`, see `_report_end`.
        match message:
            case Batch():
                self._state = msgspec.structs.replace(self._state, stats=message.stats)
                sink.on_batch(message)
            case Loading(progress):
                self._report(sink, "progressed", pid=process.child.pid, progress=progress)
            case Loaded(info):
                self._dead_starts = 0
                self._engine = process
                held, self._held = self._held, {}
                for work in held.values():
                    process.command(Submit(work))
                self._report(sink, "loaded", pid=process.child.pid, info=info)

    def _report_end(self, sink: Sink, process: EngineProcess) -> None:
        """Report the end of an engine process: a failed start, or the loss of all work in it."""
        if not process.ready:
            self._report_start_failed(sink, process.reason, process.problem)
            return
        self._report(sink, "lost")
        # Works that arrived since it died are submitted again with the rest.
        self._held.clear()
        sink.on_lost(process.reason)

    def _report_start_failed(self, sink: Sink, reason: str, problem: Problem | None) -> None:
        logger.error("engine_start_failed", extra={"reason": reason if problem is None else problem.detail})
        self._dead_starts += 1
        if problem is None and self._dead_starts >= DEAD_STARTS_MAX:
            problem = ModelError(f"Loading was tried {self._dead_starts} times: {reason}.").problem()
        if problem is None:
            self._report(sink, "start_failed")
        else:
            self._report(sink, "load_failed", error=problem)

    def _pause_s(self, starts_in_a_row: int) -> float:
        longest_s = self._settings.engine_restart_backoff_max_s
        if self._state.phase == "failed":
            return longest_s
        return min(self._settings.engine_restart_backoff_s * 2.0 ** min(starts_in_a_row - 1, 32), longest_s)

    def _report(
        self,
        sink: Sink,
        happening: Happening,
        *,
        pid: int | None = None,
        progress: LoadProgress | None = None,
        info: EngineInfo | None = None,
        error: Problem | None = None,
    ) -> None:
        """Move to the phase that the table names and report it. The last known `info` and `error` stay."""
        before, phase = self._state, next_phase(self._state.phase, happening)
        self._state = EngineState(
            phase=phase,
            info=info or before.info,
            progress=progress,
            error=None if phase == "ready" else error or before.error,
            stats=None if happening == "lost" else before.stats,
            restarts=before.restarts + (1 if happening == "lost" else 0),
            pid=pid,
        )
        sink.on_state(self._state)
