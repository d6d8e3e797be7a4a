"""Every frame of the protocol as a typed struct. Decoding refuses with a typed error, encoding never fails.

A frame is one flat JSON object, told apart by `type`. Absent means omitted, never null. Client frames come in through
`decode`, server frames go out through `encode`; a job's events become frames in `eventstream`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from worker.errors import BadFrame, FieldError, FrameTooLarge, InvalidParams, Problem, UnsupportedOperation
from worker.events import Usage
from worker.operations.base import field_error

PROTOCOL = "jobwire.v1"
DEPTH_MAX = 64
"""Nesting of a client's JSON. Deeper values could exhaust the stack of whoever walks them."""

Channel: TypeAlias = Literal["token", "narration"]
CHANNELS: frozenset[Channel] = frozenset({"token", "narration"})
State: TypeAlias = Literal["queued", "running", "ended"]

# `$` alone would let a trailing newline pass.
JobId: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,64}$(?!\n)")]
REASONS = {"/job_id": "Expected 16 to 64 letters, digits, `_` or `-`"}
"""What is allowed, where the type's own words are hard to read."""

Cursor: TypeAlias = Annotated[str, Meta(max_length=64)]
Ref: TypeAlias = Annotated[str, Meta(max_length=256)]
Priority: TypeAlias = Annotated[int, Meta(ge=0, le=9)]

# ---- client to server ------------------------------------------------------------------------------------------------


class Create(msgspec.Struct, frozen=True, kw_only=True, tag="create"):
    """Start a job, or attach to it if it exists. `body` is the whole frame, for the operation to parse."""

    job_id: JobId | None = None
    operation: Annotated[str, Meta(max_length=64)] = "infer"
    after: Cursor | None = None
    channels: frozenset[Channel] = CHANNELS
    window: int = 0
    coalesce_ms: int = 0
    ref: Ref | None = None
    body: dict[str, Any] = {}


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """End a job now. Idempotent."""

    job_id: JobId
    ref: Ref | None = None


class Subscribe(msgspec.Struct, frozen=True, kw_only=True, tag="subscribe"):
    """Follow a job that exists, from `after` or from its start."""

    job_id: JobId
    after: Cursor | None = None
    channels: frozenset[Channel] = CHANNELS
    window: int = 0
    coalesce_ms: int = 0
    ref: Ref | None = None


class Unsubscribe(msgspec.Struct, frozen=True, kw_only=True, tag="unsubscribe"):
    """Stop following; the job goes on."""

    job_id: JobId
    ref: Ref | None = None


class Update(msgspec.Struct, frozen=True, kw_only=True, tag="update"):
    """Change a waiting job's priority."""

    job_id: JobId
    priority: Priority
    ref: Ref | None = None


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag="ping"):
    """Ask for a pong. `t` comes back as it was."""

    t: int | float | Ref | None = None
    ref: Ref | None = None


ClientFrame: TypeAlias = Create | Cancel | Subscribe | Unsubscribe | Update | Ping
CLIENT_FRAMES: dict[str, type[ClientFrame]] = {
    "create": Create,
    "cancel": Cancel,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "update": Update,
    "ping": Ping,
}

NOT_OFFERED = frozenset({"ack", "auth"})
"""Frames of the protocol that this worker does not take; `hello.features` names what it offers."""

F = TypeVar("F", bound=ClientFrame)

# ---- server to client ------------------------------------------------------------------------------------------------


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client must keep to, or may count on. 0 for `max_window` and `max_coalesce_ms`: not offered."""

    max_frame_bytes: int
    max_jobs: int
    max_queue: int
    max_subscriptions: int
    heartbeat_s: float
    orphan_ttl_s: float
    retention_s: float
    max_window: int = 0
    max_coalesce_ms: int = 0


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """The first frame of a connection."""

    protocol: str
    server: str
    features: tuple[str, ...]
    auth: Literal["ok", "required"]
    limits: ServerLimits


class Queue(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a job waits: `position` counts from 1."""

    position: int
    eta_ms: int | None = None


class Accepted(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="accepted"):
    """The reply to a request that worked. After `reset` the job is told again from its start.

    `over`: the job has ended and this reader has seen its end; nothing follows.
    """

    job_id: str
    state: State
    queue: Queue | None = None
    replayed: bool = False
    reset: bool = False
    over: bool = False
    sse_url: str
    ref: str | None = None


class Narration(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="narration"):
    """What happens to a job, for people. Durations in ms, `progress` 0 to 1."""

    job_id: str
    cursor: str
    actor: str
    action: str
    target: str
    human: str
    phase: str
    queue: Queue | None = None
    progress: float | None = None
    metrics: dict[str, int | float] | None = None
    cute: str | None = None
    story: str | None = None
    level: str | None = None
    correlation_id: str | None = None
    emitted_by: str | None = None
    emitted_at_ms: int | None = None
    duration_ms: int | None = None
    queue_position: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    decode_time_ms: int | None = None


class LikelyToken(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a position: natural-log probability, text lossy where it is half a character."""

    id: int
    text: str
    logprob: float


class TokenFrame(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="token", gc=False):
    """Text, of `n` events of the log. `ids`, `logprobs` and `top_logprobs` are parallel."""

    job_id: str
    cursor: str
    text: str
    n: int = 1
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[LikelyToken, ...], ...] = ()
    index: int = 0
    kind: str = "text"


class End(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="end"):
    """The one last event of a job. `finish_reason` of a job that did not complete: cancelled, error or deadline."""

    job_id: str
    cursor: str
    status: Literal["completed", "cancelled", "failed", "expired"]
    finish_reason: str
    reason: str | None = None
    stop_sequence: str | None = None
    finish_reasons: tuple[str, ...] = ()
    usage: Usage
    error: Problem | None = None


class Error(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="error"):
    """The reply to a request that did not work. It never ends a job."""

    error: Problem
    job_id: str | None = None
    ref: str | None = None


class Pong(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="pong"):
    """Answers a ping, and breaks a silence."""

    t: int | float | str | None = None
    ref: str | None = None


ServerFrame: TypeAlias = Hello | Accepted | Narration | TokenFrame | End | Error | Pong

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


def sse_url(job_id: str) -> str:
    """Return the path of a job's event stream."""
    return f"/v1/jobs/{job_id}/stream"


def decode(data: str | bytes, frame_bytes_max: int) -> ClientFrame:
    """Return the client frame in a message.

    Raises FrameTooLarge, BadFrame if it is no JSON object with a known type, UnsupportedOperation for a type that is
    not offered, InvalidParams with a pointer to a field that is missing or wrong.
    """
    return interpret(load(data, frame_bytes_max))


def load(data: str | bytes, frame_bytes_max: int) -> dict[str, Any]:
    """Return the JSON object in a message. Raises FrameTooLarge or BadFrame."""
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError:
        raise BadFrame("The message is not Unicode: it has half a surrogate pair.") from None
    if len(raw) > frame_bytes_max:
        raise FrameTooLarge(f"The message has {len(raw)} bytes, of at most {frame_bytes_max}.")
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise BadFrame(f"The message is nested deeper than {DEPTH_MAX} levels.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFrame(f"The message is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BadFrame("The message is JSON, but not an object.")
    # Counting brackets is cheap, and most messages have too few to be deep.
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX and _is_deep(value):
        raise BadFrame(f"The message is nested deeper than {DEPTH_MAX} levels.")
    return value


def interpret(fields: dict[str, Any]) -> ClientFrame:
    """Return the client frame in a JSON object. null is the same as absent. Raises like `decode`."""
    name = fields.get("type")
    kind = CLIENT_FRAMES.get(name) if isinstance(name, str) else None
    if kind is Create:
        return create_of(fields)
    if kind is not None:
        return _convert(fields, kind)
    if isinstance(name, str) and name in NOT_OFFERED:
        raise UnsupportedOperation(f"This worker takes no {name} frames. `hello.features` lists what it offers.")
    expected = f"Expected one of {', '.join(CLIENT_FRAMES)}"
    found = "There is no `type`" if name is None else "The `type` is unknown"
    raise BadFrame(f"{found}. {expected}.", errors=(FieldError("/type", expected),))


def create_of(body: dict[str, Any], idempotency_key: str | None = None) -> Create:
    """Return the Create in a JSON object. The Idempotency-Key of a POST is the job id. Raises InvalidParams."""
    envelope = {name: body[name] for name in Create.__struct_fields__ if name in body and name != "body"}
    if idempotency_key is not None and envelope.setdefault("job_id", idempotency_key) != idempotency_key:
        detail = "Expected the same as the Idempotency-Key, or none"
        raise invalid(FieldError("/job_id", detail))
    frame = _convert(envelope, Create)
    return msgspec.structs.replace(frame, body=body)


def invalid(wrong: FieldError) -> InvalidParams:
    """Return the error for one wrong field."""
    sentence = f"{wrong.pointer[1:]}: {wrong.detail}" if wrong.pointer else wrong.detail
    return InvalidParams(f"Fix this field and send it again: {sentence}.", errors=(wrong,))


def _convert(fields: dict[str, Any], kind: type[F]) -> F:
    present = {name: value for name, value in fields.items() if value is not None and name != "type"}
    try:
        return msgspec.convert({"type": kind.__struct_config__.tag, **present}, kind)
    except msgspec.ValidationError as error:
        wrong = field_error(error)
        if wrong.pointer in REASONS:
            wrong = FieldError(wrong.pointer, REASONS[wrong.pointer])
        raise invalid(wrong) from None


def _is_deep(value: dict[str, Any]) -> bool:
    """Tell whether a JSON object is nested deeper than DEPTH_MAX, without recursion."""
    level: list[dict[str, object] | list[object]] = [value]
    for _ in range(DEPTH_MAX):
        inner = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return False
    return True
