"""What gateway and engine process say to each other: typed, versioned messages, msgpack on a socket pair.

Down (to the engine process): `Open`, `Submit`, `Cancel`, `Update`, `Close`. Up: `Loading`, `Ready`, `Unready`,
`Batch`. There is one `Batch` per engine step, and before what may be its end; never one per token. `wire` frames them.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from worker.config import Settings
from worker.engines.base import Broke, Delta, EngineInfo, EngineSpec, Generation, LoadProgress, Paused, Prefilled
from worker.errors import Problem

PROTOCOL_VERSION = 1


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A generation with what the scheduler weighs. `generation.id` names one attempt of one choice of one job.

    `priority` 0 to 9, higher first. Waiting works of equal priority are served by principal, least served first,
    per share: a principal of `weight` 2 has two.
    A `solo` work shares no step with others until its first token: it is suspected of killing the engine.
    """

    generation: Generation
    principal: str = ""
    weight: float = 1.0
    priority: int = 5
    solo: bool = False


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How to schedule: the settings of `policy` and `loop`.

    An engine step computes at most `prefill_tokens_per_step` prompt tokens. A line of waiting works gains a level of
    priority per `ageing_s` seconds unserved. A work that does not fit is passed by at most `skips_max` others. Changed
    positions are told at most every `news_ms` milliseconds.
    """

    prefill_tokens_per_step: int = 256
    ageing_s: float = 30.0
    skips_max: int = 16
    news_ms: int = 250


# ---- down ------------------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, tag="open"):
    """First message: what to load and how to schedule."""

    version: int
    spec: EngineSpec
    schedule: Schedule

    @classmethod
    def of(cls, settings: Settings) -> Open:
        """Return what these settings ask of an engine process, or of an engine in this one."""
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
            ageing_s=settings.priority_ageing_s,
            skips_max=settings.queue_skips_max,
            news_ms=settings.queue_news_ms,
        )
        return cls(PROTOCOL_VERSION, spec, schedule)


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Queue this work."""

    work: Work


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget this work, wherever it is, before the next step. No answer."""

    id: str


class Update(msgspec.Struct, frozen=True, tag="update"):
    """Change the priority of a waiting work."""

    id: str
    priority: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """Free the engine and exit with 0."""


Down: TypeAlias = Open | Submit | Cancel | Update | Close

# ---- up --------------------------------------------------------------------------------------------------------------


class Placed(msgspec.Struct, frozen=True, array_like=True, tag="Q"):
    """Work `id` waits at `position` (from 1); `eta_ms` is estimated from measured rates, None while there are none.

    Sent when the position changed; far back in the queue only when it changed much.
    """

    id: str
    position: int
    eta_ms: int | None = None


class Started(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """Work `id` holds a slot. `cached_tokens` of its `prompt_tokens` (resumed ones not counted) were in the cache."""

    id: str
    prompt_tokens: int
    cached_tokens: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="R"):
    """Work `id` can never run here, and why. It is gone."""

    id: str
    error: Problem


WorkEvent: TypeAlias = Placed | Started | Refused | Prefilled | Delta | Broke | Paused


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """The engine after a step. Rates are exponential means over the last seconds; 0 before anything was measured."""

    running: int
    waiting: int
    slots_total: int
    kv_tokens_used: int
    kv_tokens_total: int
    step_ms: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The model is being loaded."""

    progress: LoadProgress


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded; work is accepted."""

    info: EngineInfo


class Unready(msgspec.Struct, frozen=True, tag="unready"):
    """The model cannot be loaded, and why. The process exits."""

    error: Problem


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """All that happened in one step, in order, and the engine's state after it.

    `heard` counts the commands (`Submit`, `Cancel`, `Update`) taken so far: while it is behind what was sent, or while
    works run or wait, another batch is to come. `handling` is the work that is prepared or admitted next: if the engine
    dies before it says more, it died of that.
    """

    events: tuple[WorkEvent, ...]
    stats: Stats
    heard: int = 0
    handling: str = ""


Up: TypeAlias = Loading | Ready | Unready | Batch
