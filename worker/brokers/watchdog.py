"""Finds what has waited for the same thing for too long. Pure.

It counts looks instead of reading a clock, so that a gateway that was itself suspended blames nobody: it looks at even
intervals of its own time.
"""

from __future__ import annotations

LOOKS = 8
"""How often one looks within the time that is allowed."""


class Watchdog:
    """Knows for how many looks each lane has waited for the same thing."""

    def __init__(self, lanes: int) -> None:
        self._awaited: list[object] = [None] * lanes
        self._looks = [0] * lanes

    def overdue(self, lane: int, awaited: object) -> bool:
        """Look at a lane that waits for this now, None for nothing. Return whether it has for too long.

        It is told once: after that a lane has its time again.
        """
        if awaited is None or awaited != self._awaited[lane]:
            self._awaited[lane], self._looks[lane] = awaited, 0
            return False
        self._looks[lane] += 1
        if self._looks[lane] < LOOKS:
            return False
        self._awaited[lane] = None
        return True
