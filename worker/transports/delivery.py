"""Sends what has become ready: all connections in one turn of the event loop, not a task for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Receiver(Protocol):
    """A connection that has something to send."""

    def flush(self, now_ms: float) -> None:
        """Send some of it at monotonic time `now_ms`, and be added again for the rest. It neither raises nor waits."""
        ...


class Delivery:
    """The connections that have something to send. An engine step that makes thousands ready costs one turn."""

    __slots__ = ("_monotonic_ms", "_ready")

    def __init__(self, monotonic_ms: Callable[[], float]) -> None:
        self._monotonic_ms = monotonic_ms
        self._ready: list[Receiver] = []

    def add(self, receiver: Receiver) -> None:
        """Let a connection send soon. It must not be added twice before that."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._turn)
        self._ready.append(receiver)

    def _turn(self) -> None:
        """Let each send its share. Whoever is added meanwhile has its turn after all others had theirs."""
        ready, self._ready = self._ready, []
        now_ms = self._monotonic_ms()
        for receiver in ready:
            receiver.flush(now_ms)
