"""Counts of deliveries and refusals, over all connections of a worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counts since the start of the worker.

    `frames`: frames with a cursor that were handed to connections. `merged`: log events that came along in a frame
    with others. `resumes`: readers that began after a cursor. `resets`: readers whose cursor was of a log that is gone.
    `refusals`: errors that were sent, by code.
    """

    frames: int = 0
    merged: int = 0
    resumes: int = 0
    resets: int = 0
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def events(self) -> int:
        """Log events in all these frames."""
        return self.frames + self.merged
