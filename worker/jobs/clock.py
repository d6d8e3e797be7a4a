"""Time, which everything that needs it is passed."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A wall clock and one that never goes back."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...

    def monotonic_ms(self) -> float:
        """Milliseconds that never go back."""
        ...
