"""One engine process on this machine, kept running: started, watched, replaced when it dies, closed with the gateway.

Works submitted while no engine is ready are held here, in order. When an engine that was ready dies, the sink hears
`on_lost` and submits again what it wants to go on. When an engine cannot even be loaded, nothing is lost: the phase is
`failed`, the sink decides about what waits, and loading is tried again, for the file may be repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from worker.brokers.base import EngineState, Sink
from worker.config import Settings
from worker.errors import ModelError, Problem
from worker.processes import wire
from worker.processes.child import HOST_COMMAND, Child
from worker.processes.messages import Cancel, Close, Down, Loading, Open, Prioritize, Ready, Submit, Unready, Up
from worker.scheduler.works import Batch, Work

READ_BYTES = 1 << 18
# An engine that dies while loading may have been unlucky; so often in a row, something is wrong with it.
DEAD_STARTS_MAX = 5
# How long a closing engine may take to free its memory, and the kernel to bury a killed one.
CLOSE_GRACE_S = 2.0
BURIAL_S = 5.0
LAST_WORDS_S = 1.0
# Silence is counted in ticks of our own clock, so that a gateway that was itself suspended does not blame the engine.
TICKS = 8

log = logging.getLogger(__name__)
engine_log = logging.getLogger("worker.engine")


class LocalBroker:
    """Implements the broker port. `command` starts an engine process: fd and parent pid are appended to it."""

    def __init__(self, settings: Settings, command: Sequence[str] = HOST_COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._state = EngineState(phase="loading")
        self._held: dict[str, Work] = {}
        self._engine: _Life | None = None
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
        """Take work back. Unknown ids are ignored."""
        if self._held.pop(lease, None) is None and self._engine is not None:
            self._engine.command(Cancel(lease))

    def prioritize(self, lease: str, priority: int) -> None:
        """Change the priority of waiting work. Unknown ids are ignored."""
        held = self._held.get(lease)
        if held is not None:
            self._held[lease] = msgspec.structs.replace(held, priority=priority)
        elif self._engine is not None:
            self._engine.command(Prioritize(lease, priority))

    async def run(self, sink: Sink) -> None:
        """Keep an engine process running until cancelled; then close it and leave no process behind."""
        in_a_row = 0
        try:
            while True:
                in_a_row += 1
                try:
                    life = await self._live(sink)
                except OSError as error:
                    self._not_started(f"no engine process can be started ({error})", None, sink)
                else:
                    in_a_row = 1 if life.ready_s > self._settings.engine_restart_backoff_max_s else in_a_row
                    self._mourn(life, sink)
                await asyncio.sleep(self._pause_s(in_a_row))
        finally:
            self._engine = None
            self._change(sink, phase="closed", pid=None)

    async def _live(self, sink: Sink) -> _Life:
        """Start an engine process and serve with it until it is gone; return what is to be said of it."""
        opening = Open.of(self._settings)
        async with _start(self._command, opening, self._settings) as life:
            self._change(sink, pid=life.child.pid, progress=None)
            await life.receive(lambda message: self._take(message, life, sink))
            self._engine = None
        return life

    def _take(self, message: Up, life: _Life, sink: Sink) -> None:
        match message:
            case Batch():
                self._state = msgspec.structs.replace(self._state, stats=message.stats)
                sink.on_batch(message)
            case Loading(progress):
                self._change(sink, progress=progress)
            case Ready(info):
                self._dead_starts = 0
                self._engine = life
                held, self._held = self._held, {}
                for work in held.values():
                    life.command(Submit(work))
                self._change(sink, phase="ready", info=info, error=None, progress=None)
            case Unready(problem):
                life.problem = problem

    def _mourn(self, life: _Life, sink: Sink) -> None:
        """Tell the sink what the end of an engine process means."""
        if not life.ready:
            self._not_started(life.reason, life.problem, sink)
            return
        log.error("engine process %d is lost: %s", life.child.pid, life.reason)
        self._change(sink, phase="restarting", pid=None, stats=None, restarts=self._state.restarts + 1)
        # What arrived since it died is submitted again with the rest.
        self._held.clear()
        sink.on_lost(life.reason)

    def _not_started(self, reason: str, problem: Problem | None, sink: Sink) -> None:
        log.error("the engine could not be started: %s", reason if problem is None else problem.detail)
        self._dead_starts += 1
        if problem is None and self._dead_starts >= DEAD_STARTS_MAX:
            problem = ModelError(f"Loading was tried {self._dead_starts} times: {reason}.").problem()
        if problem is None:
            self._change(sink, pid=None, progress=None)
        else:
            self._change(sink, phase="failed", pid=None, progress=None, error=problem)

    def _pause_s(self, in_a_row: int) -> float:
        longest_s = self._settings.engine_restart_backoff_max_s
        if self._state.phase == "failed":
            return longest_s
        return min(self._settings.engine_restart_backoff_s * 2.0 ** min(in_a_row - 1, 32), longest_s)

    def _change(self, sink: Sink, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        sink.on_state(self._state)


class _Life:
    """One engine process, from its start to its end: what goes to it, what comes from it, and why it ended."""

    def __init__(
        self, child: Child, output: asyncio.StreamReader, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.child = child
        self.problem: Problem | None = None
        self.reason = ""
        self._output = output
        self._reader = reader
        self._writer = writer
        self._ready_at_s: float | None = None
        self._ended_at_s: float | None = None
        # Commands sent, and what the last batch said of them and of the works.
        self._sent = self._heard = self._works = 0
        self._spoke = False

    @property
    def ready(self) -> bool:
        """Tell whether its model was loaded."""
        return self._ready_at_s is not None

    @property
    def ready_s(self) -> float:
        """For how long it was ready before it ended."""
        if self._ready_at_s is None or self._ended_at_s is None:
            return 0.0
        return self._ended_at_s - self._ready_at_s

    def send(self, message: Down) -> None:
        """Say something. How much may wait to be sent is bounded by what the queue limits let in."""
        self._writer.write(wire.frame(message))

    def command(self, message: Submit | Cancel | Prioritize) -> None:
        """Say something that a batch is owed for."""
        self._sent += 1
        self.send(message)

    async def receive(self, take: Callable[[Up], None]) -> None:
        """Hand on every message until the process is gone, for whatever reason."""
        messages = wire.upward()
        try:
            while data := await self._read():
                for message in messages.feed(data):
                    self._note(message)
                    take(message)
        except wire.Garbage as garbage:
            self.kill(f"the engine process cannot be understood: {garbage}")
        self._ended_at_s = asyncio.get_running_loop().time()

    def kill(self, reason: str) -> None:
        """End it now, because of `reason`."""
        self.reason = reason
        self.child.kill()
        # One that the kernel cannot end at once, in a driver, must not hold us up.
        self._writer.transport.abort()

    async def watch(self, stall_timeout_s: float, start_timeout_s: float) -> None:
        """Kill it when it says nothing for too long although it owes something."""
        tick_s = min(stall_timeout_s, start_timeout_s) / TICKS
        silent_ticks = 0
        while True:
            await asyncio.sleep(tick_s)
            owes = not self.ready or self._works > 0 or self._heard < self._sent
            silent_ticks = silent_ticks + 1 if owes and not self._spoke else 0
            self._spoke = False
            limit_s = stall_timeout_s if self.ready else start_timeout_s
            if silent_ticks * tick_s >= limit_s:
                what = "step" if self.ready else "progress in loading the model"
                self.kill(f"the engine process made no {what} for {limit_s:g} s")
                return

    async def log_output(self) -> None:
        """Log what it prints, line by line, and keep the last lines."""
        rest = b""
        while data := await self._output.read(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            # A line without end is cut rather than collected.
            if len(rest) > READ_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._log_line(line)
        if rest:
            self._log_line(rest)

    async def close(self) -> None:
        """End it: kindly when it is ready for that, then for sure."""
        try:
            if self.ready and not self._writer.is_closing():
                self.send(Close())
                await self._wait_end(CLOSE_GRACE_S)
        finally:
            self.child.kill()
            self._writer.transport.abort()
        if not await self._wait_end(BURIAL_S):
            log.error("engine process %d does not end although it was killed", self.child.pid)

    async def wait_explained(self, logging_output: asyncio.Task[None]) -> None:
        """Wait a moment for the exit code and the last words, then know the reason."""
        await self._wait_end(BURIAL_S)
        await asyncio.wait([logging_output], timeout=LAST_WORDS_S)
        self.reason = self.reason or self.child.ending()

    async def _wait_end(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        # Asking is cheaper here than a thread or file descriptor per process that could tell.
        while self.child.alive and loop.time() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return not self.child.alive

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(READ_BYTES)
        except OSError:
            # A process that dies with unread commands resets the connection: an end like any other.
            return b""

    def _note(self, message: Up) -> None:
        self._spoke = True
        match message:
            case Batch():
                self._heard = message.commands_answered
                self._works = message.stats.running + message.stats.waiting
            case Ready():
                self._ready_at_s = asyncio.get_running_loop().time()

    def _log_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.child.lines.append(text)
        word, _, rest = text.partition(" ")
        level = logging.getLevelNamesMapping().get(word)
        engine_log.log(level or logging.INFO, "%s", rest if level else text, extra={"pid": self.child.pid})


@contextlib.asynccontextmanager
async def _start(command: Sequence[str], opening: Open, settings: Settings) -> AsyncIterator[_Life]:
    """Start an engine process, logged and watched. However the block is left, the process has ended after it."""
    child = Child(command, opening.spec.threads)
    with contextlib.ExitStack() as stack:
        stack.callback(child.close)
        reader, writer = await asyncio.open_unix_connection(sock=child.socket)
        stack.callback(writer.transport.abort)
        output = asyncio.StreamReader()
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), child.process.stdout
        )
        stack.callback(pipe.close)
        life = _Life(child, output, reader, writer)
        try:
            async with asyncio.TaskGroup() as tasks:
                logging_output = tasks.create_task(life.log_output())
                watching = tasks.create_task(
                    life.watch(settings.engine_stall_timeout_s, settings.engine_start_timeout_s)
                )
                life.send(opening)
                yield life
                watching.cancel()
                await life.wait_explained(logging_output)
                logging_output.cancel()
        finally:
            await life.close()
