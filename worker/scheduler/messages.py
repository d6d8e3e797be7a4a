"""What gateway and engine process say to each other: typed, versioned messages, msgpack on a socket pair.

Down (to the engine process): `Open`, `Submit`, `Cancel`, `Update`, `Close`. Up: `Loading`, `Ready`, `Unready`,
`Batch`. There is one `Batch` per engine step, never one message per token. A frame is a 4-byte big-endian length and its msgpack body.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from worker.engines.base import Broke, Delta, EngineInfo, EngineSpec, Generation, LoadProgress, Prefilled
from worker.errors import Problem

PROTOCOL_VERSION = 1


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A generation with what the scheduler weighs. `generation.id` names one attempt of one choice of one job.

    `priority` 0 to 9, higher first. Waiting works of equal priority are served by principal, least served first.
    A `solo` work shares no step with others until its first token: it is suspected of killing the engine.
    """

    generation: Generation
    principal: str = ""
    priority: int = 5
    solo: bool = False


# ---- down ------------------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, tag="open"):
    """First message: what to load and how to schedule."""

    version: int
    spec: EngineSpec
    prefill_tokens_per_step: int


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
    """Work `id` waits at `position` (from 1); `eta_ms` is estimated from measured rates, None while there are none."""

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


WorkEvent: TypeAlias = Placed | Started | Refused | Prefilled | Delta | Broke


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
    """All that happened in one step, in order, and the engine's state after it."""

    events: tuple[WorkEvent, ...]
    stats: Stats


Up: TypeAlias = Loading | Ready | Unready | Batch
