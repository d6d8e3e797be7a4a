"""Every frame of the protocol as a typed struct, and how frames are encoded. `decoding` parses them.

A frame is one flat JSON object, distinguished by `type`. Absent means omitted, never null. The structs are the single
source of the protocol's schema: each field is described here, and `corpus` has an example of each frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import Meta

from worker.errors import FieldError, JobwireError, Problem
from worker.events import Usage

PROTOCOL = "jobwire.v1"

Channel: TypeAlias = Literal["token", "narration"]
CHANNELS: frozenset[Channel] = frozenset({"token", "narration"})
State: TypeAlias = Literal["queued", "running", "ended"]

# `$` alone would let a trailing newline pass.
JobId: TypeAlias = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9_-]{16,64}$(?!\n)", description="The job's id, chosen by the client or by the worker."),
]
JOB_ID_ALLOWED = "Expected 16 to 64 letters, digits, `_` or `-`"

After: TypeAlias = Annotated[
    str, Meta(max_length=64, description="The last cursor seen: continue after it. Without one, from the start.")
]
Channels: TypeAlias = Annotated[frozenset[Channel], Meta(description="What to send besides the end. Both if absent.")]
Window: TypeAlias = Annotated[
    int,
    Meta(
        ge=0,
        description="Most frames, of any type, that may be in flight without an `ack`. 0, the default, is no bound.",
    ),
]
CoalesceMs: TypeAlias = Annotated[
    int, Meta(ge=0, description="Least time between token frames of the job, in ms: there are fewer and larger ones.")
]
Ref: TypeAlias = Annotated[str, Meta(max_length=256, description="Echoed in the reply.")]
Priority: TypeAlias = Annotated[int, Meta(ge=0, le=9, description="Higher goes first.")]
NewId: TypeAlias = Annotated[JobId, Meta(description="Chosen by the client: it makes a request safe to repeat.")]

# ---- client to server ------------------------------------------------------------------------------------------------


class Create(msgspec.Struct, frozen=True, kw_only=True, tag="create"):
    """Start a job, or attach to it if it exists. The fields of the operation are beside these, in the same object.

    `body` is that whole object, for the operation to parse; `wrong` is what its envelope has wrong. Neither is a field
    on the wire.
    """

    UNSENT: ClassVar[frozenset[str]] = frozenset({"body", "wrong"})

    job_id: NewId | None = None
    operation: Annotated[str, Meta(max_length=64, description="One of the worker's operations.")] = "infer"
    after: After | None = None
    channels: Channels = CHANNELS
    window: Window = 0
    coalesce_ms: CoalesceMs = 0
    ref: Ref | None = None
    body: dict[str, Any] = {}
    wrong: tuple[FieldError, ...] = ()


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """End a job now. Idempotent."""

    job_id: JobId
    ref: Ref | None = None


class Subscribe(msgspec.Struct, frozen=True, kw_only=True, tag="subscribe"):
    """Follow a job that exists, from `after` or from its start."""

    job_id: JobId
    after: After | None = None
    channels: Channels = CHANNELS
    window: Window = 0
    coalesce_ms: CoalesceMs = 0
    ref: Ref | None = None


class Unsubscribe(msgspec.Struct, frozen=True, kw_only=True, tag="unsubscribe"):
    """Stop following; the job goes on. Success has no reply."""

    job_id: JobId
    ref: Ref | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """Change a waiting job's priority."""

    job_id: JobId
    priority: Priority
    ref: Ref | None = None


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag="ack"):
    """Make room in the window of a job that is followed with `window`. Success has no reply."""

    job_id: JobId
    cursor: Annotated[
        str, Meta(max_length=64, description="The cursor of a frame that was processed, and with it all before.")
    ]
    ref: Ref | None = None


class Auth(msgspec.Struct, frozen=True, kw_only=True, tag="auth"):
    """Authenticate: as the first frame where `hello.auth` is "required", later to stay beyond `hello.expires_in`.

    The first one is answered by `hello` again, with `auth` "ok"; success of a later one has no reply.
    """

    token: Annotated[str, Meta(description="An API key, or a token made with one.")]
    ref: Ref | None = None


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag="ping"):
    """Ask for a pong."""

    t: Annotated[
        int | float | Annotated[str, Meta(max_length=256)] | None, Meta(description="Echoed in the pong as it was.")
    ] = None
    ref: Ref | None = None


ClientFrame: TypeAlias = Create | Cancel | Subscribe | Unsubscribe | Update | Ack | Auth | Ping
CLIENT_FRAMES: dict[str, type[ClientFrame]] = {
    "create": Create,
    "cancel": Cancel,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "update": Update,
    "ack": Ack,
    "auth": Auth,
    "ping": Ping,
}

# ---- server to client ------------------------------------------------------------------------------------------------

AnyId: TypeAlias = Annotated[str, Meta(description="The job.")]
Cursor: TypeAlias = Annotated[
    str, Meta(description="The reader's position after this frame, to be sent as `after`. Opaque.")
]
InForce: TypeAlias = Annotated[
    int,
    Meta(
        description="The job's priority: what was asked for, or the highest that the key may have. Absent before 0.3.0."
    ),
]
Ignored: TypeAlias = Annotated[
    tuple[str, ...],
    Meta(description="Unknown fields of the request, perhaps misspelt; at most 8 names."),
]
EchoedRef: TypeAlias = Annotated[str, Meta(description="The `ref` of the request that this answers.")]


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client must keep to, or may count on.

    Operators know the same limits by other names, of their settings: `frame_bytes_max`, `json_members_max`,
    `messages_max`, `jobs_per_account_max`, `queue_jobs_max`, `subscriptions_per_connection_max`, `window_frames_max`
    and `coalesce_ms_max`.
    """

    max_frame_bytes: Annotated[int, Meta(description="Size of one message, either way.")]
    max_members: Annotated[int, Meta(description="Fields and elements in one message, at all depths together.")]
    max_messages: Annotated[int, Meta(description="Messages of a conversation.")]
    max_jobs: Annotated[int, Meta(description="Live jobs of one key, over all of its users.")]
    max_queue: Annotated[int, Meta(description="Waiting jobs, over all clients.")]
    max_subscriptions: Annotated[int, Meta(description="Jobs that one connection may follow at the same time.")]
    max_window: Annotated[int, Meta(description="Largest `window`, in frames.")]
    max_coalesce_ms: Annotated[int, Meta(description="Largest `coalesce_ms`.")]
    heartbeat_s: Annotated[float, Meta(description="After this time of silence the worker sends `pong`.")]
    auth_timeout_s: Annotated[float, Meta(description="Where `auth` is required, the time within which it must come.")]
    orphan_ttl_s: Annotated[float, Meta(description="A job without readers is cancelled after this time.")]
    retention_s: Annotated[float, Meta(description="How long an ended job can still be read.")]


class Hello(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="hello"):
    """The first frame of a connection, and the reply to the first `auth`."""

    protocol: Annotated[str, Meta(description="The version spoken.")]
    server: Annotated[str, Meta(description="Name and version of the worker.")]
    features: Annotated[tuple[str, ...], Meta(description="What the worker offers beyond the minimum.")]
    auth: Annotated[Literal["ok", "required"], Meta(description="Whether an `auth` frame must come first.")]
    expires_in: Annotated[
        int | None, Meta(description="Seconds until the credential expires; send another `auth` before.")
    ] = None
    limits: Annotated[ServerLimits, Meta(description="The worker's limits.")]
    ref: EchoedRef | None = None


class QueuePlace(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job's place in the queue."""

    position: Annotated[int, Meta(description="Counts from 1.")]
    eta_ms: Annotated[int | None, Meta(description="Estimate of the remaining wait, in ms.")] = None


class Accepted(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="accepted"):
    """The reply to a request that succeeded."""

    job_id: AnyId
    state: Annotated[State, Meta(description="The job's state.")]
    priority: InForce | None = None
    queue: Annotated[QueuePlace | None, Meta(description="Its place in the queue, while it waits.")] = None
    replayed: Annotated[bool, Meta(description="The job existed before: this `create` has attached to it.")] = False
    reset: Annotated[
        bool, Meta(description="The cursor is of a log that is gone: the job is replayed from its start.")
    ] = False
    over: Annotated[
        bool, Meta(description="The job has ended, and the cursor is that of its end: nothing follows.")
    ] = False
    ignored: Ignored = ()
    sse_url: Annotated[str, Meta(description="Where the job can be read as server-sent events.")]
    ref: EchoedRef | None = None


class NarrationFrame(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="narration"):
    """What happens to a job, for people."""

    job_id: AnyId
    cursor: Cursor
    actor: Annotated[str, Meta(description="The part that acts: scheduler, engine, worker...")]
    action: Annotated[
        str, Meta(description="What happens: queued, prepared, admitted, prefill, first_token, completed...")
    ]
    target: Annotated[str, Meta(description="The job's id again.")]
    human: Annotated[str, Meta(description="One plain sentence.")]
    phase: Annotated[str, Meta(description="The job's phase: queued, prefill, decode, recovery, done or note.")]
    queue: Annotated[QueuePlace | None, Meta(description="The job's place in the queue.")] = None
    progress: Annotated[float | None, Meta(description="Share of the prompt that is read, 0 to 1.")] = None
    metrics: Annotated[Mapping[str, int | float] | None, Meta(description="Numbers that belong to the sentence.")] = (
        None
    )
    cute: Annotated[str | None, Meta(description="A playful version of it.")] = None
    level: Annotated[str | None, Meta(description="warn or error, where it is not info.")] = None
    correlation_id: Annotated[str | None, Meta(description="Links narration, logs and traces of one request.")] = None
    emitted_by: Annotated[str | None, Meta(description="The program that narrates.")] = None
    emitted_at_ms: Annotated[int | None, Meta(description="The time, in ms since the Unix epoch.")] = None
    duration_ms: Annotated[int | None, Meta(description="How long it took, in ms.")] = None
    queue_position: Annotated[int | None, Meta(description="Place in the queue, from 1.")] = None
    tokens_in: Annotated[int | None, Meta(description="Tokens of the prompt.")] = None
    tokens_out: Annotated[int | None, Meta(description="Tokens generated.")] = None
    ignored: Annotated[
        tuple[str, ...],
        Meta(description="In the first narration of a stream that answers a POST: as `accepted.ignored`."),
    ] = ()


class LikelyToken(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a position."""

    id: Annotated[int, Meta(description="The token's id.")]
    text: Annotated[str, Meta(description="Its text, lossy if it is part of a character.")]
    logprob: Annotated[float, Meta(description="Natural logarithm of its probability, at least -9999.")]


class TokenFrame(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="token", gc=False):
    """Text of a job. `ids`, `logprobs` and `top_logprobs` are parallel."""

    job_id: AnyId
    cursor: Cursor
    text: Annotated[str, Meta(description="The next text: whole Unicode characters.")]
    n: Annotated[int, Meta(description="Events of the log that are merged here.")] = 1
    ids: Annotated[tuple[int, ...], Meta(description="Ids of exactly the tokens that the text came from.")] = ()
    logprobs: Annotated[tuple[float, ...], Meta(description="Natural log-probabilities of the tokens.")] = ()
    top_logprobs: Annotated[
        tuple[tuple[LikelyToken, ...], ...], Meta(description="The likeliest tokens at each position.")
    ] = ()
    index: Annotated[int, Meta(description="The choice that the text belongs to, from 0.")] = 0
    kind: Annotated[str, Meta(description="text, or reasoning that comes before the answer.")] = "text"


class End(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="end"):
    """The one last event of a job, whatever happened."""

    job_id: AnyId
    cursor: Cursor
    status: Annotated[Literal["completed", "cancelled", "failed", "expired"], Meta(description="How it ended.")]
    finish_reason: Annotated[
        str, Meta(description="stop, length, stop_string or grammar; else cancelled, error or deadline.")
    ]
    reason: Annotated[str | None, Meta(description="Why a job was cancelled: client, abandoned or shutdown.")] = None
    stop_sequence: Annotated[str | None, Meta(description="The stop string that was found.")] = None
    finish_reasons: Annotated[tuple[str, ...], Meta(description="With several choices: the reason of each.")] = ()
    usage: Annotated[Usage, Meta(description="What the job consumed.")]
    error: Annotated[Problem | None, Meta(description="Why it failed or expired.")] = None


class Error(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="error"):
    """The reply to a request that failed. It never ends a job."""

    error: Annotated[Problem, Meta(description="What went wrong, and what to do about it.")]
    job_id: Annotated[str | None, Meta(description="The job that the request named.")] = None
    ref: EchoedRef | None = None


class Pong(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="pong"):
    """The reply to a ping; also sent unasked after a silence."""

    t: Annotated[int | float | str | None, Meta(description="The `t` of the ping.")] = None
    ref: EchoedRef | None = None


class Goaway(msgspec.Struct, frozen=True, kw_only=True, tag="goaway"):
    """The worker is about to end: it accepts no new jobs, lets the running ones end, and closes with 1012."""

    reason: Annotated[str, Meta(description="Why: shutdown.")]
    retry_ms: Annotated[int, Meta(description="Time after which to try again, here or elsewhere, in ms.")]


ServerFrame: TypeAlias = Hello | Accepted | NarrationFrame | TokenFrame | End | Error | Pong | Goaway

DETAIL_CHARS_MIN = 80
"""What is left of a detail at least, where an error must be short."""

_encoder = msgspec.json.Encoder()


def encode(value: object) -> bytes:
    """Return a frame, or anything else made of JSON's types, as UTF-8. Half surrogate pairs become question marks."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encoder.encode(_whole(msgspec.to_builtins(value)))


def _whole(value: Any) -> Any:
    """Return a copy of a value in which all text can be encoded."""
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case dict():
            return {_whole(key): _whole(item) for key, item in value.items()}
        case list() | tuple():
            return [_whole(item) for item in value]
        case _:
            return value


def encode_error(error: JobwireError, bytes_max: int, encoded: Callable[[JobwireError], bytes]) -> bytes:
    """Return an error as `encoded` makes it. One that would have more than `bytes_max` bytes says less."""
    data = encoded(error)
    while len(data) > bytes_max and (error.errors or len(error.detail) > DETAIL_CHARS_MIN):
        error = error.shorter()
        data = encoded(error)
    return data


def sse_url(job_id: str) -> str:
    """Return the path of a job's event stream."""
    return f"/v1/jobs/{job_id}/stream"
