"""Keeps one engine process and its preparer on this machine running: started, replaced, closed with the gateway.

Works go through the preparer (`preparing`), where they are held while no engine is ready, and then, as bytes, to the
engine. When an engine that was ready dies, the sink is called (`on_lost`) and submits again what is to go on; what
waited for the preparer was forgotten with the rest. When an engine cannot even be loaded, nothing is lost: the phase is
"failed", the sink decides about the works that wait, and loading is tried again, for the file may be repaired.
An engine counts as ready when its preparer is loaded as well. A preparer that dies later is replaced, and works wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from worker.brokers.base import EngineState, Sink
from worker.brokers.child_watch import restart_pause_s
from worker.brokers.engine_process import EngineProcess
from worker.brokers.phases import Happening, next_phase
from worker.brokers.preparing import Preparing
from worker.config import Settings
from worker.engines.base import EngineInfo, LoadProgress
from worker.errors import ConfigError, ModelError, Problem
from worker.processes.child import ENGINE_COMMAND, PREPARER_COMMAND
from worker.processes.messages import Cancel, Loaded, Loading, Made, Open, Prioritize, Up
from worker.requests import Prompt, ResponseFormat
from worker.scheduler.works import Batch, Work

DEAD_STARTS_MAX = 5
"""An engine that dies while loading may have been unlucky; after this many in a row, something is wrong with it."""

logger = logging.getLogger(__name__)


class LocalBroker:
    """Implements the broker port. Commands start the processes: fd and parent pid are appended to them."""

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str] = ENGINE_COMMAND,
        preparer_command: Sequence[str] = PREPARER_COMMAND,
    ) -> None:
        self._settings = settings
        self._command = command
        self._state = EngineState(phase="loading")
        self._preparing = Preparing(settings, preparer_command, self)
        # Loaded; ready as well when the preparer is.
        self._loaded: tuple[EngineProcess, EngineInfo] | None = None
        self._engine: EngineProcess | None = None
        self._sink: Sink | None = None
        self._dead_starts = 0

    @property
    def state(self) -> EngineState:
        """Where the engine stands now."""
        return msgspec.structs.replace(self._state, preparer=self._preparing.state)

    def submit(self, work: Work) -> None:
        """Hand over work; held until an engine is ready."""
        self._preparing.submit(work)

    def refusal(self, prompt: Prompt, wanted: ResponseFormat) -> Problem | None:
        """Return why this very prompt or form was refused a moment ago, None if it was not."""
        return self._preparing.refusal(prompt, wanted)

    def cancel(self, lease: str) -> None:
        """Withdraw work. Unknown leases are ignored."""
        if not self._preparing.cancel(lease) and self._engine is not None:
            self._engine.command(Cancel(lease))

    def prioritize(self, lease: str, priority: int) -> None:
        """Change the priority of waiting work. Unknown leases are ignored."""
        if not self._preparing.prioritize(lease, priority) and self._engine is not None:
            self._engine.command(Prioritize(lease, priority))

    async def run(self, sink: Sink) -> None:
        """Keep both processes running until cancelled; then close them and leave none behind.

        Raises ConfigError when the model's chat template turns out to be unusable at the start.
        """
        self._sink = sink
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._preparing.run())
                tasks.create_task(self._preparing.measure())
                # Not a task: a second cancellation has to reach it, which ends an engine that does not close.
                await self._keep_engine(sink)
        except BaseExceptionGroup as group:
            if (unusable := group.subgroup(ConfigError)) is not None:
                raise unusable.exceptions[0] from None
            raise
        finally:
            self._report(sink, "closed")

    async def _keep_engine(self, sink: Sink) -> None:
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
            self._forget_engine()

    async def _serve(self, sink: Sink) -> EngineProcess:
        """Start an engine process and serve with it until it is gone; return it, with the reason of its end."""
        async with EngineProcess.start(self._command, Open.of(self._settings), self._settings) as process:
            self._report(sink, "started", pid=process.child.pid)
            await process.receive(lambda message: self._on_message(sink, process, message))
            self._forget_engine()
        return process

    def _forget_engine(self) -> None:
        """Hand out no work any longer. Works in an engine that was ready are lost, and those on the way to it."""
        self._loaded = None
        if self._engine is not None:
            self._engine = None
            self._preparing.suspend()

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
                self._loaded = process, info
                self._open()

    # ---- what the preparer reports -----------------------------------------------------------------------------------

    def on_made(self, made: Made, priority: int | None) -> None:
        """Pass a work that was read on to the engine."""
        assert self._sink is not None, "works are read while run() runs"
        assert self._engine is not None, "works are handed out while an engine is ready"
        # The engine begins while the sink writes; its events are read later than this in any case.
        self._engine.submit(made.submit)
        self._sink.on_prepared(made.lease, made.prompt_tokens, made.ids)
        if priority is not None:
            self._engine.command(Prioritize(made.lease, priority))

    def on_refused(self, lease: str, error: Problem) -> None:
        """Report a work that can never run."""
        assert self._sink is not None, "works are read while run() runs"
        self._sink.on_refused(lease, error)

    def on_preparer_loaded(self) -> None:
        """Open for works, if the engine is loaded."""
        self._open()

    def on_preparer_failed(self, error: Problem) -> None:
        """Report that nothing can be read, unless an engine is at work and waits for the next preparer."""
        if self._sink is not None and self._engine is None:
            self._report(self._sink, "load_failed", pid=self._state.pid, error=error)

    def _open(self) -> None:
        """Be ready, once engine and preparer are loaded."""
        if self._loaded is None or self._engine is not None or not self._preparing.loaded:
            return
        assert self._sink is not None, "processes run while run() runs"
        process, info = self._loaded
        self._engine = process
        self._report(self._sink, "loaded", pid=process.child.pid, info=info)
        self._preparing.resume(info.bounds)

    # ---- the engine's life -------------------------------------------------------------------------------------------

    def _report_end(self, sink: Sink, process: EngineProcess) -> None:
        """Report the end of an engine process: a failed start, or the loss of all work in it."""
        if self._state.phase != "ready":
            self._report_start_failed(sink, process.reason, process.problem)
            return
        self._report(sink, "lost")
        # Works that arrived since it died are submitted again with the rest.
        self._preparing.suspend()
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
        if self._state.phase == "failed":
            return self._settings.engine_restart_backoff_max_s
        return restart_pause_s(self._settings, starts_in_a_row)

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
        sink.on_state(self.state)
