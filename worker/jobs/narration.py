"""What a record of a job's log means, in a sentence for people and in numbers: protocols encode it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from worker.events import Record

EMITTED_BY = "jobwire"
"""The program that narrates, as readers are shown it."""


class Narration(msgspec.Struct, frozen=True):
    """The narration of one record. A reader knows the job, the number and the time of the record anyway.

    `actor` does `action`, of which `human` is a sentence, and `cute` a playful one. `phase` is where the job is now.
    Numbers that belong to the sentence are in `metrics`, or have a field of their own; None is unknown.
    """

    actor: str
    action: str
    human: str
    phase: str
    cute: str | None = None
    level: str | None = None
    queue_position: int | None = None
    eta_ms: int | None = None
    progress: float | None = None
    metrics: Mapping[str, int | float] | None = None
    duration_ms: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


Narrate: TypeAlias = Callable[[Record], Narration | None]
"""Returns the narration of a record; None for text and for the end."""
