"""A sink that remembers everything, and tests can wait for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from worker.brokers.base import Broker, EngineState
from worker.engines.base import Delta
from worker.errors import Problem
from worker.scheduler.works import Batch, Started, WorkEvent

WAIT_S = 30.0


class Recorder:
    """Implements the sink port; `on_lost` and `on_state` may be given reactions."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.states: list[EngineState] = []
        self.lost: list[str] = []
        self.prepared: dict[str, tuple[int, bytes]] = {}
        self.refused: dict[str, Problem] = {}
        self.react_to_loss: Callable[[], None] = lambda: None
        self.react_to_state: Callable[[EngineState], None] = lambda _: None
        self._changed = asyncio.Event()

    def on_batch(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._changed.set()

    def on_prepared(self, lease: str, prompt_tokens: int, ids: bytes) -> None:
        assert lease not in self.prepared, "prepared twice"
        self.prepared[lease] = prompt_tokens, ids
        self._changed.set()

    def on_refused(self, lease: str, error: Problem) -> None:
        assert lease not in self.refused, "refused twice"
        self.refused[lease] = error
        self._changed.set()

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.react_to_loss()
        self._changed.set()

    def on_state(self, state: EngineState) -> None:
        self.states.append(state)
        self.react_to_state(state)
        self._changed.set()

    @property
    def events(self) -> list[WorkEvent]:
        return [event for batch in self.batches for event in batch.events]

    @property
    def phases(self) -> list[str]:
        """The phases in order, each once per change."""
        phases = [state.phase for state in self.states]
        return [phase for n, phase in enumerate(phases) if n == 0 or phases[n - 1] != phase]

    def ids(self, lease: str) -> list[int]:
        return [
            token for event in self.events if isinstance(event, Delta) and event.lease == lease for token in event.ids
        ]

    def text(self, lease: str) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta) and event.lease == lease)

    def started(self) -> list[str]:
        return [event.lease for event in self.events if isinstance(event, Started)]

    def finished(self, lease: str) -> bool:
        return any(isinstance(e, Delta) and e.lease == lease and e.finish is not None for e in self.events)

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is asked after every call."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"waited {WAIT_S} s for {what}; phases {self.phases}, lost {self.lost}") from None

    async def until_hands(self, broker: Broker) -> tuple[int, ...]:
        """Wait until both hands of the preparer are there; return their pids."""
        # They come without notice: nobody needs to know in earnest.
        async with asyncio.timeout(WAIT_S):
            while len(broker.state.preparer.hands) < 2:  # noqa: ASYNC110  (as above)
                await asyncio.sleep(0.005)
        return broker.state.preparer.hands

    async def until_phase(self, phase: str) -> EngineState:
        await self.until(phase, lambda: bool(self.states) and self.states[-1].phase == phase)
        return self.states[-1]

    async def until_finished(self, *work_ids: str) -> None:
        await self.until(f"the end of {work_ids}", lambda: all(self.finished(lease) for lease in work_ids))


@contextlib.asynccontextmanager
async def running(broker: Broker, sink: Recorder) -> AsyncIterator[None]:
    """Run a broker while the block lasts, and close it however the block ends."""
    task = asyncio.create_task(broker.run(sink))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
