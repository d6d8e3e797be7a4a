"""Time for the tests: a clock that they move forward, and a way to let everything happen that is due."""

from __future__ import annotations

import asyncio
import time

import pytest

TURNS = 200


class Clock:
    """The monotonic clock, which event loops use too: it goes on as always, and `advance` moves it forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = time.monotonic
        self._ahead_s = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)

    @property
    def now_s(self) -> float:
        return self._real() + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds


async def settle() -> None:
    """Let everything happen that needs no time: what was sent on this machine is there to be received at once."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
