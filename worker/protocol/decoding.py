"""Parses messages of clients into frames, or refuses them with a typed error that names what is allowed."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from typing import Any, TypeVar, get_type_hints

import msgspec

from worker.errors import BadFrame, FieldError, FrameTooLarge, InvalidParams
from worker.operations.base import Limits
from worker.operations.fields import Kinds, WrongFields, compiled, integers, missing
from worker.protocol.frames import CLIENT_FRAMES, JOB_ID_ALLOWED, ClientFrame, Create

DEPTH_MAX = 64
"""Nesting of a client's JSON. Deeper values could exhaust the stack of code that walks them."""

BOM = b"\xef\xbb\xbf"
"""Some editors and shells write it before UTF-8. It is no part of JSON (RFC 8259, 8.1)."""

STEPS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}
"""What each bracket adds to the depth."""

DIGITS_MAX = 1000
"""Digits of a number in a client's JSON. The time to read one grows with their square."""

LONG_NUMBER = b"0" * (DIGITS_MAX + 1)
DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in STEPS)
WHITESPACE = b" \t\r\n"


F = TypeVar("F", bound=ClientFrame)


def load(data: str | bytes, frame_bytes_max: int, members_max: int) -> dict[str, Any]:
    """Return the JSON object in a message. Raises FrameTooLarge or BadFrame.

    Its depth and the number of its members are checked before there are any values: a message of small values costs
    a hundred times as much to build and to walk through as one of the same size with a few large ones.
    """
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError:
        raise BadFrame("The message is not Unicode: it contains half a surrogate pair.") from None
    if len(raw) > frame_bytes_max:
        raise FrameTooLarge(f"The message has {len(raw)} bytes, of at most {frame_bytes_max}.")
    raw = raw.removeprefix(BOM)
    _check_shape(raw, members_max)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadFrame(f"The message is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise BadFrame("The message is JSON, but not an object.")
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


def _check_shape(raw: bytes, members_max: int) -> None:
    """Raise BadFrame if JSON is nested too deep, has too many members or too long a number.

    What is not JSON may pass: the parser refuses it. The time is in proportion to the bytes, a few ms for 1 MiB.
    """
    opens = raw.count(b"[") + raw.count(b"{")
    long_number = len(raw) > DIGITS_MAX and LONG_NUMBER in raw.translate(DIGITS_AS_ZEROS)
    if not long_number and opens <= DEPTH_MAX and opens + raw.count(b",") <= members_max:
        # Most messages have too few of them, within strings or not.
        return
    bare = _without_strings(raw, members_max)
    brackets = bare.translate(None, NO_BRACKETS)[: 2 * members_max + 2]
    if max(accumulate(map(STEPS.__getitem__, brackets)), default=0) > DEPTH_MAX:
        raise BadFrame(f"The message is nested deeper than {DEPTH_MAX} levels.")
    opens = bare.count(b"[") + bare.count(b"{")
    # A container has one member more than commas, unless it is empty.
    if opens + bare.count(b",") - bare.count(b"[]") - bare.count(b"{}") > members_max:
        raise _too_many(members_max)
    if LONG_NUMBER in bare.translate(DIGITS_AS_ZEROS):
        raise BadFrame(f"The message has a number of more than {DIGITS_MAX} digits.")


def _without_strings(raw: bytes, members_max: int) -> bytes:
    """Return JSON without whitespace, and with a quote in place of each string."""
    if b"\\" in raw:
        # A backslash is always in a string. Pairs go first: what follows one is not escaped.
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if raw.count(b'"') > 4 * members_max:
        # Each member has two strings at most.
        raise _too_many(members_max)
    return b'"'.join(raw.split(b'"')[::2]).translate(None, WHITESPACE)


def _too_many(members_max: int) -> BadFrame:
    return BadFrame(f"The message has more than {members_max} members: fields and elements, at all depths together.")
