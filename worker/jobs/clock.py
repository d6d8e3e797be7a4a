"""The clock that is passed to every part that needs the time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A wall clock and one that never goes back."""

    def wall_ms(self) -> int:
        """Return milliseconds since the Unix epoch."""
        ...

    def monotonic_ms(self) -> float:
        """Return milliseconds that never go back."""
        ...
