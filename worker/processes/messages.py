"""What gateway and engine process send each other: typed, versioned messages, msgpack on a socket pair.

Down (to the engine process): `Open`, `Submit`, `Cancel`, `Prioritize`, `Close`. Up: `Loading`, `Loaded`, `LoadFailed`,
`Batch`. There is one `Batch` per engine step, and before what may be its end; never one per token. `wire` frames them.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from worker.config import Settings
from worker.engines.base import EngineInfo, EngineSpec, LoadProgress
from worker.errors import Problem
from worker.scheduler.works import Batch, PreparedWork, Schedule

PROTOCOL_VERSION = 1
"""Both sides must be of the same version. They differ only if the installation is upgraded while it runs."""


# ---- down ------------------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, tag="open"):
    """First message: what to load and how to schedule."""

    version: int
    spec: EngineSpec
    schedule: Schedule

    @classmethod
    def of(cls, settings: Settings) -> Open:
        """Return the message that these settings ask for, be it to a process or for an engine in this one."""
        spec = EngineSpec(
            engine=settings.engine,
            model=settings.model,
            slots=settings.slots,
            context_tokens=settings.context_tokens,
            threads=settings.threads,
            chat_template=settings.chat_template,
            options={"device": str(settings.device), **settings.exllamav2},
        )
        schedule = Schedule(
            prefill_tokens_per_step=settings.prefill_tokens_per_step,
            priority_ageing_s=settings.priority_ageing_s,
            queue_skips_max=settings.queue_skips_max,
            queue_news_ms=settings.queue_news_ms,
        )
        return cls(PROTOCOL_VERSION, spec, schedule)


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Queue this work."""

    work: PreparedWork


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget this work, wherever it is, before the next step."""

    lease: str


class Prioritize(msgspec.Struct, frozen=True, tag="prioritize"):
    """Change the priority of a waiting work."""

    lease: str
    priority: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """Free the engine and exit with 0."""


Down: TypeAlias = Open | Submit | Cancel | Prioritize | Close

# ---- up --------------------------------------------------------------------------------------------------------------


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The model is being loaded."""

    progress: LoadProgress


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is loaded; work is accepted."""

    info: EngineInfo


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be loaded, and why. The process exits."""

    error: Problem


Up: TypeAlias = Loading | Loaded | LoadFailed | Batch
