"""The scheduler's input and output: works, and one batch of their events per engine step."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from worker.engines.base import Broke, Delta, Generation, Paused, Prefilled, Prepared
from worker.errors import Problem


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A generation and its claim on the engine. `generation.lease` names one attempt at one choice of one job.

    `priority` 0 to 9, higher first. Waiting works of equal priority are served by account, least served first, per
    share: an account of `weight` 2 has two. A `solo` work shares no step with others until its first token: it is
    suspected of killing the engine.
    """

    generation: Generation
    account: str = ""
    weight: float = 1.0
    priority: int = 5
    solo: bool = False


class PreparedWork(msgspec.Struct, frozen=True, kw_only=True):
    """A work whose prompt is read: what the scheduler is given. The rest is as in `Work`."""

    prepared: Prepared
    account: str = ""
    weight: float = 1.0
    priority: int = 5
    solo: bool = False


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How to schedule: the settings of `policy` and `loop`, under the names that they have in `config.settings`.

    An engine step computes at most `prefill_tokens_per_step` prompt tokens. A lane of waiting works gains a level of
    priority per `priority_ageing_s` seconds unserved. A work that does not fit is passed by at most `queue_skips_max`
    others. Changed positions are reported at most every `queue_news_ms` milliseconds.
    """

    prefill_tokens_per_step: int = 256
    priority_ageing_s: float = 30.0
    queue_skips_max: int = 16
    queue_news_ms: int = 250


class Placed(msgspec.Struct, frozen=True, array_like=True, tag="Q"):
    """The work waits at `position` (from 1); `eta_ms` is estimated from measured rates, None while there are none.

    Sent when the position changed; far back in the queue only when it changed much.
    """

    lease: str
    position: int
    eta_ms: int | None = None


class Started(msgspec.Struct, frozen=True, array_like=True, tag="S"):
    """The work holds a slot. `cached_tokens` of its `prompt_tokens` (resumed ones not counted) were in the cache."""

    lease: str
    prompt_tokens: int
    cached_tokens: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="R"):
    """The work can never run here, for the reason in `error`. It is gone."""

    lease: str
    error: Problem


WorkEvent: TypeAlias = Placed | Started | Refused | Prefilled | Delta | Broke | Paused


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """The engine after a step. Rates are exponential means over the last seconds; 0 before anything was measured.

    `step_gap_ms` is the longest time between two steps of the last one to two seconds, while works ran.
    """

    running: int
    waiting: int
    slots_total: int
    kv_tokens_used: int
    kv_tokens_total: int
    step_ms: float
    step_gap_ms: float
    decode_tokens_per_s: float
    prefill_tokens_per_s: float


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """All that happened in one step, in order, and the engine's state after it.

    `commands_answered` counts the commands (`Submit`, `Cancel`, `Prioritize`) that took effect so far: while it is
    behind the number sent, or while works run or wait, another batch will come. `handling` is the lease of the work
    that is admitted next, or whose form is compiled while nothing runs: if the engine dies before the next batch, it
    died of that work.
    """

    events: tuple[WorkEvent, ...]
    stats: Stats
    commands_answered: int = 0
    handling: str = ""
