"""Takes messages of clients apart into frames, or refuses them with a typed error that says what is allowed."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from worker.errors import BadFrame, FieldError, FrameTooLarge, InvalidParams
from worker.operations.base import field_error
from worker.protocol.frames import CLIENT_FRAMES, JOB_ID_ALLOWED, ClientFrame, Create

DEPTH_MAX = 64
"""Nesting of a client's JSON. Deeper values could exhaust the stack of whoever walks them."""

REASONS = {"/job_id": JOB_ID_ALLOWED}
"""What is allowed, where the type's own words are hard to read."""

F = TypeVar("F", bound=ClientFrame)


def decode(data: str | bytes, frame_bytes_max: int) -> ClientFrame:
    """Return the client frame in a message.

    Raises FrameTooLarge, BadFrame if it is no JSON object with a known type, InvalidParams with a pointer to a field
    that is missing or wrong.
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
