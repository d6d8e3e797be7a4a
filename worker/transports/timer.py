"""One timer per millisecond, shared by all who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker.jobs.clock import Clock


class EventLoopTimer:
    """Implements the port `Timer` on the event loop. The functions it calls must neither raise nor wait."""

    def __init__(self, clock: Clock) -> None:
        self.monotonic_ms = clock.monotonic_ms
        self._calls: dict[int, list[Callable[[], None]]] = {}

    def call_at(self, due_ms: int, call: Callable[[], None]) -> None:
        """Call a function once, at this monotonic time."""
        calls = self._calls.get(due_ms)
        if calls is None:
            calls = self._calls[due_ms] = []
            asyncio.get_running_loop().call_later((due_ms - self.monotonic_ms()) / 1000, self._fire, due_ms)
        calls.append(call)

    def _fire(self, due_ms: int) -> None:
        for call in self._calls.pop(due_ms):
            call()
