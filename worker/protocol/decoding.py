"""Parses messages of clients into frames, or refuses them with a typed error that names what is allowed."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar, get_type_hints

import msgspec

from worker.errors import BadFrame, FieldError, FrameTooLarge, InvalidParams
from worker.operations.base import Limits
from worker.operations.fields import Kinds, WrongFields, compiled, integers, missing
from worker.protocol.frames import CLIENT_FRAMES, JOB_ID_ALLOWED, ClientFrame, Create

DEPTH_MAX = 64
"""Nesting of a client's JSON. Deeper values could exhaust the stack of code that walks them."""


F = TypeVar("F", bound=ClientFrame)


def load(data: str | bytes, frame_bytes_max: int) -> dict[str, Any]:
    """Return the JSON object in a message. Raises FrameTooLarge or BadFrame."""
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError:
        raise BadFrame("The message is not Unicode: it contains half a surrogate pair.") from None
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


def interpret(fields: dict[str, Any], limits: Limits) -> ClientFrame:
    """Return the client frame in a JSON object. null is the same as absent.

    Raises BadFrame if its type is unknown, InvalidParams with a pointer to each field that is missing or wrong. What is
    wrong with a Create is in the frame, since its body is not checked yet.
    """
    name = fields.get("type")
    kind = CLIENT_FRAMES.get(name) if isinstance(name, str) else None
    if kind is Create:
        return create_of(fields, limits)
    if kind is not None:
        return _convert(fields, kind, limits)
    expected = f"Expected one of {', '.join(CLIENT_FRAMES)}"
    found = "There is no `type`" if name is None else "The `type` is unknown"
    raise BadFrame(f"{found}. {expected}.", errors=(FieldError("/type", expected),))


def create_of(body: dict[str, Any], limits: Limits) -> Create:
    """Return the Create in a JSON object, with what is wrong with its envelope in `wrong`."""
    wrong = WrongFields()
    return Create(**_values(body, Create, limits, wrong), body=body, wrong=wrong.found)


def create_of_post(body: dict[str, Any], limits: Limits, idempotency_key: str | None = None) -> Create:
    """Return the Create in the body of a POST, with what is wrong with its envelope in `wrong`.

    The Idempotency-Key is the job id. A window is wrong: what is read over HTTP cannot be acknowledged. Programs need
    none, since TCP holds back whatever they do not read; pages may ask for `coalesce_ms`.
    """
    wrong, fields = WrongFields(), {**body, "window": None}
    job_id = body.get("job_id")
    if idempotency_key is not None and job_id is None:
        fields["job_id"] = idempotency_key
    elif idempotency_key is not None and job_id != idempotency_key:
        wrong.add("/job_id", "Expected the same as the Idempotency-Key, or none")
        fields["job_id"] = None
    values = _values(fields, Create, limits, wrong)
    if body.get("window") not in (None, 0):
        wrong.add("/window", "Not allowed here: only a WebSocket has a `window`")
    return Create(**values, body=body, wrong=wrong.found)


def invalid(wrong: FieldError) -> InvalidParams:
    """Return the error for one wrong field."""
    return WrongFields([wrong]).error()


def _convert(fields: dict[str, Any], kind: type[F], limits: Limits) -> F:
    """Return a frame. Raises InvalidParams."""
    wrong = WrongFields()
    values = _values(fields, kind, limits, wrong)
    wrong.extend(missing("", name) for name in _REQUIRED[kind] if fields.get(name) is None)
    wrong.refuse()
    return kind(**values)


def _values(fields: dict[str, Any], kind: type[msgspec.Struct], limits: Limits, wrong: WrongFields) -> dict[str, Any]:
    """Return the right ones of a frame's fields, and record the wrong ones: by type, and beyond what may be asked."""
    words = _words(limits)
    values = wrong.convert(fields, _KINDS[kind], words)
    for name, most in (("window", limits.window_frames_max), ("coalesce_ms", limits.coalesce_ms_max)):
        if values.get(name, 0) > most:
            wrong.add(f"/{name}", words[name])
    return values


@cache
def _words(limits: Limits) -> dict[str, str]:
    """Return what is allowed, where the words of the type are hard to read or do not have the upper bound."""
    return {
        "job_id": JOB_ID_ALLOWED,
        "window": integers(0, limits.window_frames_max),
        "coalesce_ms": integers(0, limits.coalesce_ms_max),
    }


_KINDS: dict[type[msgspec.Struct], Kinds] = {
    kind: compiled(
        {
            name: hint
            for name, hint in get_type_hints(kind, include_extras=True).items()
            if name in kind.__struct_fields__ and name not in Create.UNSENT
        }
    )
    for kind in CLIENT_FRAMES.values()
}
"""What each field of a client frame may be."""

_REQUIRED: dict[type[msgspec.Struct], tuple[str, ...]] = {
    kind: tuple(field.name for field in msgspec.structs.fields(kind) if field.required) for kind in _KINDS
}
"""The fields without which a client frame means nothing."""


def _is_deep(value: dict[str, Any]) -> bool:
    """Return whether a JSON object is nested deeper than DEPTH_MAX, without recursion."""
    level: list[dict[str, object] | list[object]] = [value]
    for _ in range(DEPTH_MAX):
        inner = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return False
    return True
