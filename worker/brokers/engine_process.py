"""One engine process, from its start to its end: what is sent to it, what it sends, and why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from worker.brokers.child_watch import FINAL_OUTPUT_S, READ_BYTES, REAP_TIMEOUT_S, connect, log_output, wait_end
from worker.config import Settings
from worker.errors import Problem
from worker.processes import wire
from worker.processes.child import Child
from worker.processes.messages import Cancel, Close, Down, Loaded, LoadFailed, Open, Prioritize, Up
from worker.scheduler.works import Batch

CLOSE_GRACE_S = 2.0
"""How long an engine that is asked to close may take to free its memory."""

TICKS = 8
"""How often the watchdog looks within its time limit. It counts ticks of our own clock, so that a gateway that was
itself suspended does not blame the engine."""

logger = logging.getLogger(__name__)
engine_logger = logging.getLogger("worker.engine")


class EngineProcess:
    """One engine process. `reason` is why it ended, and `problem` why it could not load the model, as it reported."""

    def __init__(self, child: Child, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.child = child
        self.problem: Problem | None = None
        self.reason = ""
        self._reader = reader
        self._writer = writer
        self._ready_at_s: float | None = None
        self._ended_at_s: float | None = None
        # Commands sent to it, commands that it has reported as received, and works that it has.
        self._sent = self._received = self._works = 0
        self._got_message = False

    @property
    def ready(self) -> bool:
        """Whether its model was loaded."""
        return self._ready_at_s is not None

    @property
    def ready_s(self) -> float:
        """Seconds for which it was ready before it ended."""
        if self._ready_at_s is None or self._ended_at_s is None:
            return 0.0
        return self._ended_at_s - self._ready_at_s

    def submit(self, frame: bytes) -> None:
        """Send the frame of a `Submit`, as a hand made it. What may wait here is bounded by the limits of the queue."""
        self._sent += 1
        self._writer.write(frame)

    def command(self, message: Cancel | Prioritize) -> None:
        """Send a command, which it answers with a batch like a `Submit`."""
        self._sent += 1
        self._send(message)

    async def receive(self, on_message: Callable[[Up], None]) -> None:
        """Pass on every message until the process is gone, for any reason."""
        messages = wire.upward()
        try:
            while data := await self._read():
                for message in messages.feed(data):
                    self._note(message)
                    on_message(message)
        except wire.Garbage as garbage:
            self.kill(f"the engine process cannot be understood: {garbage}")
        self._ended_at_s = asyncio.get_running_loop().time()

    def kill(self, reason: str) -> None:
        """End it now, because of `reason`."""
        self.reason = reason
        self.child.kill()
        # One that the kernel cannot end at once, in a driver, must not hold us up.
        self._writer.transport.abort()

    def _send(self, message: Down) -> None:
        self._writer.write(wire.frame(message))

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(READ_BYTES)
        except OSError:
            # A process that dies with unread commands resets the connection: an end like any other.
            return b""

    def _note(self, message: Up) -> None:
        """Keep what the watchdog needs. Raises Garbage for a message that cannot come now."""
        self._got_message = True
        if self.ready != isinstance(message, Batch):
            raise wire.Garbage(f"{type(message).__name__} came {'after' if self.ready else 'before'} Loaded")
        match message:
            case Batch():
                self._received = message.commands_answered
                self._works = message.stats.running + message.stats.waiting
            case Loaded():
                self._ready_at_s = asyncio.get_running_loop().time()
            case LoadFailed(problem):
                self.problem = problem

    # ---- while it runs -----------------------------------------------------------------------------------------------

    async def _watch(self, stall_timeout_s: float, start_timeout_s: float) -> None:
        """Kill it when it is silent for too long although it owes a message."""
        tick_s = min(stall_timeout_s, start_timeout_s) / TICKS
        silent_ticks = 0
        while True:
            await asyncio.sleep(tick_s)
            owes = not self.ready or self._works > 0 or self._received < self._sent
            silent_ticks = silent_ticks + 1 if owes and not self._got_message else 0
            self._got_message = False
            limit_s = stall_timeout_s if self.ready else start_timeout_s
            if silent_ticks * tick_s >= limit_s:
                what = "step" if self.ready else "progress in loading the model"
                self.kill(f"the engine process made no {what} for {limit_s:g} s")
                return

    # ---- its end -----------------------------------------------------------------------------------------------------

    async def _explain(self, logging_output: asyncio.Task[None]) -> None:
        """Wait a moment for the exit code and the final output, and make the reason of them."""
        await wait_end(self.child, REAP_TIMEOUT_S)
        await asyncio.wait([logging_output], timeout=FINAL_OUTPUT_S)
        self.reason = self.reason or self.child.ending()

    async def _close(self) -> None:
        """End it: by asking, if it is ready to be asked, and then by force."""
        try:
            if self.ready and not self._writer.is_closing():
                self._send(Close())
                await wait_end(self.child, CLOSE_GRACE_S)
        finally:
            self.child.kill()
            self._writer.transport.abort()
        if not await wait_end(self.child, REAP_TIMEOUT_S):
            logger.error("engine process %d does not end although it was killed", self.child.pid)

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, command: Sequence[str], opening: Open, settings: Settings) -> AsyncIterator[EngineProcess]:
        """Start an engine process, logged and watched. However the block is left, the process has ended after it.

        Raises OSError when the system starts no process.
        """
        child = Child(command, opening.spec.threads)
        with contextlib.ExitStack() as stack:
            stack.callback(child.close)
            reader, writer = await asyncio.open_unix_connection(sock=child.socket)
            stack.callback(writer.transport.abort)
            output, close_output = await connect(child)
            stack.callback(close_output)
            process = cls(child, reader, writer)
            try:
                async with asyncio.TaskGroup() as tasks:
                    logging_output = tasks.create_task(log_output(child, output, engine_logger))
                    watching = tasks.create_task(
                        process._watch(settings.engine_stall_timeout_s, settings.engine_start_timeout_s)
                    )
                    process._send(opening)
                    yield process
                    watching.cancel()
                    await process._explain(logging_output)
                    logging_output.cancel()
            finally:
                await process._close()
