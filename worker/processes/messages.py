"""What the gateway and the processes beside it send each other: typed, versioned messages, msgpack on socket pairs.

Down to the engine process: `Open`, `Submit`, `Cancel`, `Prioritize`, `Close`. Up: `Loading`, `Loaded`, `LoadFailed`,
`Batch`. There is one `Batch` per engine step, and before what may be its end; never one per token.
Down to the preparer: `OpenPreparer`. Up: `PreparerLoaded` or `LoadFailed`, then a `Hand` per process that it forks.
Down to a hand: `SetBounds`, `Prepare`. Up: `FormPassed`, and `Made` or `Refuse` per `Prepare`. `wire` frames them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from worker.config import Settings
from worker.engines.base import Bounds, EngineInfo, EngineSpec, LoadProgress
from worker.errors import Problem
from worker.scheduler.works import Batch, PreparedWork, Schedule, Work

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
        schedule = Schedule(
            prefill_tokens_per_step=settings.prefill_tokens_per_step,
            priority_ageing_s=settings.priority_ageing_s,
            queue_skips_max=settings.queue_skips_max,
            queue_news_ms=settings.queue_news_ms,
        )
        return cls(PROTOCOL_VERSION, _spec(settings), schedule)


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Queue this work."""

    work: PreparedWork


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget this work, wherever it is, before the next step (a lease; the client's frame of the same name cancels a
    job)."""

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


# ---- the preparer and its hands --------------------------------------------------------------------------------------


class HandLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one work may cost the hand that reads it, under the names of the settings."""

    prepare_timeout_s: float = 10.0
    prepare_memory_bytes_max: int = 256 << 20
    form_compile_ms_max: int = 200
    form_mask_ms_max: int = 20


class OpenPreparer(msgspec.Struct, frozen=True, tag="open_preparer"):
    """First message to the preparer: whose prompts to read, and within which limits."""

    version: int
    spec: EngineSpec
    limits: HandLimits

    @classmethod
    def of(cls, settings: Settings) -> OpenPreparer:
        """Return the message that these settings ask for."""
        limits = HandLimits(
            prepare_timeout_s=settings.prepare_timeout_s,
            prepare_memory_bytes_max=settings.prepare_memory_bytes_max,
            form_compile_ms_max=settings.form_compile_ms_max,
            form_mask_ms_max=settings.form_mask_ms_max,
        )
        return cls(PROTOCOL_VERSION, _spec(settings), limits)


class PreparerLoaded(msgspec.Struct, frozen=True, tag="preparer_loaded"):
    """Vocabulary, template and grammar compiler are in memory; hands follow."""


class TemplateFailed(msgspec.Struct, frozen=True, tag="template_failed"):
    """The model's chat template cannot be used, and why. The preparer exits."""

    error: Problem


class Hand(msgspec.Struct, frozen=True, tag="hand"):
    """A hand was forked for a lane; its connection travels with this message.

    `signal` and `exit_code` are those of the hand that it replaces. Both are 0 for the first of a lane, and after one
    that left by itself.
    """

    pid: int
    lane: int
    signal: int = 0
    exit_code: int = 0


class SetBounds(msgspec.Struct, frozen=True, tag="set_bounds"):
    """The facts about the engine that is loaded now. Sent before the first work."""

    bounds: Bounds


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Read this work. `try_form`: its form is not known to be harmless."""

    work: Work
    try_form: bool = False


class FormPassed(msgspec.Struct, frozen=True, tag="form_passed"):
    """The form of this work has passed its trial after `ms`; what ends the hand now is the prompt."""

    lease: str
    ms: float


class Made(msgspec.Struct, frozen=True, tag="made"):
    """The work is read. `ids` are its prompt's, packed as int32; empty if it came with ids.

    `submit` is the frame of the `Submit` for the engine: the gateway passes it on undecoded.
    """

    lease: str
    prompt_tokens: int
    ids: bytes
    submit: bytes


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """The work can never run, and why. `culprit` is the part of it that was expensive to refuse, if one was."""

    lease: str
    error: Problem
    culprit: Literal["", "form", "prompt"] = ""


FromPreparer: TypeAlias = PreparerLoaded | LoadFailed | TemplateFailed | Hand
ToHand: TypeAlias = SetBounds | Prepare
FromHand: TypeAlias = FormPassed | Made | Refuse


def _spec(settings: Settings) -> EngineSpec:
    return EngineSpec(
        engine=settings.engine,
        model=settings.model,
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        threads=settings.threads,
        piece_tokens_max=settings.prefill_piece_tokens_max,
        chat_template=settings.chat_template,
        options={"device": str(settings.device), **settings.exllamav2},
    )
