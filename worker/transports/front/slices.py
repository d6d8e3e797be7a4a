"""Lets the event loop turn while a connection has much to read.

What one read brings may be tens of thousands of tiny frames or chunks, and nothing in reading them waits.
"""

from __future__ import annotations

import asyncio
import time

SLICE_S = 0.001
"""How long one connection may keep the loop before it lets all others have their turn."""


class Slice:
    """The time that a connection has used since the loop last turned for it."""

    __slots__ = ("_until_s",)

    def __init__(self) -> None:
        self._until_s = 0.0

    def begin(self) -> None:
        """Begin to count: the connection has just been given its turn."""
        self._until_s = time.perf_counter() + SLICE_S

    async def breathe(self) -> None:
        """Let the loop turn if the time is used up."""
        if time.perf_counter() >= self._until_s:
            await asyncio.sleep(0)
            self.begin()
