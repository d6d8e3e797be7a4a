"""The events of a job, as its reader gets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

Frame: TypeAlias = dict[str, Any]
"""A message on the wire: a JSON object."""


class Usage(TypedDict, total=False):
    """The resources that a job used. Times are in milliseconds."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_ms: float
    ttft_ms: float
    total_ms: float
    tokens_per_s: float


class LikelyToken(TypedDict):
    """One of the most likely tokens at a position, with the natural logarithm of its probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text: `n` tokens of the choice `index`. `kind` is text or reasoning.

    `ids`, `logprobs` and `top_logprobs` are set if the job includes them, with one entry per token.
    """

    job_id: str
    cursor: str
    text: str
    n: int = 1
    index: int = 0
    kind: str = "text"
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[list[LikelyToken], ...] = ()


@dataclass(frozen=True, slots=True)
class Narration:
    """A change in the life of the job, with one sentence for people (`human`). `fields` is the whole frame."""

    job_id: str
    cursor: str
    actor: str = ""
    action: str = ""
    human: str = ""
    phase: str = ""
    progress: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """The last event of every job. `status` is completed, cancelled, failed or expired."""

    job_id: str
    cursor: str
    status: str
    finish_reason: str | None = None
    reason: str | None = None
    stop_sequence: str | None = None
    finish_reasons: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """The worker lost its log of the job and starts over: discard all text so far. Rare."""

    job_id: str


Event: TypeAlias = Token | Narration | End | Reset

_TYPES: dict[str, type[Token] | type[Narration] | type[End]] = {"token": Token, "narration": Narration, "end": End}


def event_of(frame: Frame) -> Token | Narration | End | None:
    """Return the event in a frame, or None if its type is unknown. Unknown fields are ignored."""
    make = _TYPES.get(frame.get("type", ""))
    if make is None:
        return None
    known: Frame = {name: frame[name] for name in make.__match_args__ if frame.get(name) is not None}
    for name in known.keys() & {"ids", "logprobs", "top_logprobs", "finish_reasons"}:
        known[name] = tuple(known[name])
    if make is Narration:
        known["fields"] = frame
    return make(**known)
