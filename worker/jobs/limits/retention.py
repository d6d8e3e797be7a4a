"""Decides which ended logs are forgotten: after `retention_s`, or oldest first when all of them exceed their bytes."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

Key: TypeAlias = tuple[str, str]


class Retention:
    """Ended jobs in the order of their end. Times are monotonic milliseconds."""

    def __init__(self, age_max_ms: float, bytes_max: int) -> None:
        self._age_max_ms = age_max_ms
        self._bytes_max = bytes_max
        self._ended: deque[tuple[float, Key, int]] = deque()
        self.bytes = 0

    def add(self, key: Key, size_bytes: int, now_ms: float) -> None:
        """Start to count the days of an ended log."""
        self._ended.append((now_ms, key, size_bytes))
        self.bytes += size_bytes

    def due(self, now_ms: float) -> list[Key]:
        """Remove and return the keys of the logs to forget now."""
        forgotten: list[Key] = []
        while self._ended and (self._ended[0][0] + self._age_max_ms <= now_ms or self.bytes > self._bytes_max):
            _, key, size_bytes = self._ended.popleft()
            self.bytes -= size_bytes
            forgotten.append(key)
        return forgotten
