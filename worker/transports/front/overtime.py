"""Lets others have their turn while connections have much to read.

What one read brings may be tens of thousands of tiny frames or chunks, and nothing in reading them waits. One message
may take as long as many of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

SLICE_S = 0.001
"""How long one connection may keep the loop before it waits for its turn."""

REST_FROM_S = 0.001
REST_S_MAX = 0.05
"""The longest that a message may take."""


class Overtime:
    """The connections that have used up their slice. One of them goes on at a time, so however many there are, the loop
    turns after a slice; and it rests after what took longer, for as long as it did. `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._rest_until_s = 0.0

    def begin(self) -> float:
        """Return when a slice that begins now is used up, for `over` and `wait`."""
        return self._clock() + SLICE_S

    def over(self, until_s: float) -> bool:
        """Return whether a slice is used up."""
        return self._clock() >= until_s

    def wait(self, go_on: Callable[[], None], until_s: float) -> None:
        """Call `go_on` when it is the turn of a connection that has used up a slice, which ended at `until_s`."""
        now_s = self._clock()
        if now_s - until_s >= REST_FROM_S:
            self._rest_until_s = now_s + min(now_s - until_s, REST_S_MAX)
        self._waiting.append(go_on)
        if len(self._waiting) == 1:
            self._call_next()

    async def wait_turn(self) -> None:
        """Wait for the turn of a task, which may have waited for other things since its slice began."""
        turn = asyncio.get_running_loop().create_future()
        self.wait(partial(_settle, turn), self._clock())
        await turn

    def _call_next(self) -> None:
        loop, rest_s = asyncio.get_running_loop(), self._rest_until_s - self._clock()
        if rest_s > 0:
            loop.call_later(rest_s, self._go_on)
        else:
            loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        # It stays the first until it has gone on: who waits meanwhile must not be called in the same turn.
        try:
            self._waiting[0]()
        finally:
            self._waiting.popleft()
            if self._waiting:
                self._call_next()


def _settle(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
