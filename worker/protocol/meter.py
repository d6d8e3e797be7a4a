"""How often something may happen. Pure: the time is passed in."""

from __future__ import annotations


class Meter:
    """At most `per_s` times a second, evenly or in one burst."""

    __slots__ = ("_at_ms", "_left", "_per_s")

    def __init__(self, per_s: int, now_ms: float) -> None:
        self._per_s = per_s
        self._left: float = per_s
        self._at_ms = now_ms

    def take(self, now_ms: float) -> bool:
        """Count one at monotonic time `now_ms`; return whether it is within the limit."""
        self._left = min(self._left + (now_ms - self._at_ms) * self._per_s / 1000, self._per_s)
        self._at_ms = now_ms
        if self._left < 1:
            return False
        self._left -= 1
        return True
