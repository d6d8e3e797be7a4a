"""One timer for all who wait for the same millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker.jobs.clock import Clock


class Wheel:
    """Implements `Timer` on the event loop. Whoever is called must not raise, and must not wait."""

    def __init__(self, clock: Clock) -> None:
        self.monotonic_ms = clock.monotonic_ms
        self._calls: dict[int, list[Callable[[], None]]] = {}

    def call_at(self, due_ms: int, call: Callable[[], None]) -> None:
        """Call once at this time."""
        calls = self._calls.get(due_ms)
        if calls is None:
            calls = self._calls[due_ms] = []
            asyncio.get_running_loop().call_later((due_ms - self.monotonic_ms()) / 1000, self._turn, due_ms)
        calls.append(call)

    def _turn(self, due_ms: int) -> None:
        for call in self._calls.pop(due_ms):
            call()
