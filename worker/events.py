"""What can happen to a job.

Events are frozen nouns. A job's log is a list of `Record`, each an event with its number and time. All of them are
msgspec structs, so that the same definitions serve in other processes, as msgpack.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from worker.errors import Problem

FinishReason: TypeAlias = Literal["stop", "length", "stop_string", "grammar"]
"""Why a sequence ended: an end token, its token budget, a stop string, or a complete structured output."""


class TopLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One of the likeliest tokens at a position: id, its text (lossy if not UTF-8), natural-log probability."""

    id: int
    text: str
    logprob: float


class Queued(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="queued"):
    """The job waits; `position` counts from 1, `eta_ms` is an estimate of its wait from measured rates."""

    position: int
    eta_ms: int | None = None


class Tokenized(msgspec.Struct, frozen=True, gc=False, tag="prepared"):
    """The job's prompt is read: it has `prompt_tokens` tokens, with these `ids`, packed as int32.

    The ids stay with the job, so the prompt is rendered and tokenized once, also if an engine dies later.
    """

    prompt_tokens: int
    ids: bytes


class Admitted(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag="admitted"):
    """The job holds a slot of the batch and its prefill begins, after the `cached_tokens` that are in the KV cache."""

    prompt_tokens: int
    cached_tokens: int = 0


class Progress(msgspec.Struct, frozen=True, gc=False, tag="progress"):
    """`done` of `total` prompt tokens are prefilled."""

    done: int
    total: int


class Token(msgspec.Struct, frozen=True, omit_defaults=True, tag="token", gc=False):
    """Text that may be shown, with the ids of exactly the tokens that it came from (several if text was held back).

    `logprobs` and `top_logprobs` are parallel to `ids`. `index` is the choice (0 to n-1).
    """

    text: str
    ids: tuple[int, ...] = ()
    index: int = 0
    kind: Literal["text", "reasoning"] = "text"
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] | None = None


class FirstToken(msgspec.Struct, frozen=True, gc=False, tag="first_token"):
    """The record before this one is the job's first `Token`, `wait_ms` after the job was created."""

    wait_ms: int


class Preempted(msgspec.Struct, frozen=True, gc=False, tag="preempted"):
    """The job lost its slot for now, for `reason`; nothing that it produced is lost."""

    reason: str


class Resumed(msgspec.Struct, frozen=True, gc=False, tag="resumed"):
    """The job was handed to an engine again, with all tokens that it has. `attempt` counts only what readers saw."""

    attempt: int


class Note(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag="note"):
    """Something worth a sentence that changes no state: an engine's restart, a summary of the completed job."""

    actor: str
    action: str
    human: str
    level: Literal["info", "warn", "error"] = "info"
    duration_ms: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """The consumption of a job. Durations in milliseconds from its creation; `tokens_per_s` over the decode phase."""

    prompt_tokens: Annotated[int, Meta(description="Tokens of the prompt.")]
    completion_tokens: Annotated[int, Meta(description="Tokens generated, over all choices.")]
    cached_tokens: Annotated[int, Meta(description="Tokens of the prompt that were in the KV cache already.")]
    queue_ms: Annotated[int, Meta(description="Wait for a slot, in ms.")]
    total_ms: Annotated[int, Meta(description="From creation to the end, in ms.")]
    ttft_ms: Annotated[int | None, Meta(description="From creation to the first token, in ms.")] = None
    tokens_per_s: Annotated[float | None, Meta(description="Rate of the decode phase.")] = None


class Finished(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag="finished"):
    """The job completed. With n > 1 `finish_reason` is choice 0's and `finish_reasons` has all."""

    finish_reason: FinishReason
    usage: Usage
    stop_sequence: str | None = None
    finish_reasons: tuple[FinishReason, ...] = ()


class Failed(msgspec.Struct, frozen=True, gc=False, tag="failed"):
    """The job failed for good."""

    error: Problem
    usage: Usage


class Cancelled(msgspec.Struct, frozen=True, gc=False, tag="cancelled"):
    """The job was cancelled; `reason` is "client", "abandoned" or "shutdown"."""

    reason: str
    usage: Usage


class Expired(msgspec.Struct, frozen=True, gc=False, tag="expired"):
    """The job's deadline passed."""

    error: Problem
    usage: Usage


Terminal: TypeAlias = Finished | Failed | Cancelled | Expired
Event: TypeAlias = Queued | Tokenized | Admitted | Progress | Token | FirstToken | Preempted | Resumed | Note | Terminal
TERMINAL = (Finished, Failed, Cancelled, Expired)


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of a job's log: its number from 1, wall-clock milliseconds since the epoch, the event."""

    n: int
    at_ms: int
    event: Event
