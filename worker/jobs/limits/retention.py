"""Which ended logs are forgotten: those older than `retention_s`, and the oldest while all exceed their bytes."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

JobKey: TypeAlias = tuple[str, str]
"""The owner's name and the job's id."""

FORGOTTEN_MAX = 500
"""Logs that are forgotten at a time, which takes some ms."""

FORGOTTEN_PER_END = 2
"""Logs that are forgotten when one is added: however fast jobs end, they are not more than may be kept for long."""


class Retention:
    """Ended jobs in the order of their end. Times are monotonic milliseconds."""

    def __init__(self, age_max_ms: float, bytes_max: int) -> None:
        self._age_max_ms = age_max_ms
        self._bytes_max = bytes_max
        self._ended: deque[tuple[float, JobKey, int]] = deque()
        self.bytes = 0

    def add(self, key: JobKey, size_bytes: int, now_ms: float) -> None:
        """Start the retention of an ended log."""
        self._ended.append((now_ms, key, size_bytes))
        self.bytes += size_bytes

    def pop_due(self, now_ms: float, most: int = FORGOTTEN_MAX) -> list[JobKey]:
        """Remove and return the keys of the logs to forget now, `most` of them; the rest are due next time."""
        forgotten: list[JobKey] = []
        while self._is_due(now_ms) and len(forgotten) < most:
            _, key, size_bytes = self._ended.popleft()
            self.bytes -= size_bytes
            forgotten.append(key)
        return forgotten

    def _is_due(self, now_ms: float) -> bool:
        if not self._ended:
            return False
        return self._ended[0][0] + self._age_max_ms <= now_ms or self.bytes > self._bytes_max
