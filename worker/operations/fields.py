"""Checks the fields of a JSON object one by one, so that one answer names everything that is wrong with a request.

Every transport shares this: the envelope of a frame, its delivery, the body of an operation, the request for a token.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec

from worker.errors import FieldError, InvalidParams

NAMED_MAX = 32
"""Errors that one answer names."""

FOUND_MAX = 512
"""Errors that are searched for: a hostile body may have a million of them."""

PARTS_MAX = 4096
"""Parts of an array that are looked at one by one. If what is wrong lies behind them, only the first error is named."""

DETAIL_CHARS_MAX = 120
"""A detail may quote a value of the client."""

REASON_CHARS_MAX = 1000
"""What is looked at of msgspec's message, which may quote a whole value between its beginning and its end."""

KEY_CHARS_MAX = 20
"""Characters that are quoted of a key."""

KEYS = "keys"
"""In the `extra` of a type that is a mapping's key: what such keys are called."""

Kinds: TypeAlias = Mapping[str, tuple[Any, type[msgspec.Struct]]]
"""What each field of an object may be, by name, as `compiled` returns it."""

NO_WORDS: Mapping[str, str] = {}


class WrongFields:
    """What is wrong with a request, as far as it has been checked."""

    def __init__(self, found: Iterable[FieldError] = ()) -> None:
        self._found = list(found)

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def names(self) -> set[str]:
        """The top-level fields that are wrong, or have something wrong within them."""
        return {error.pointer.split("/", 2)[1] for error in self._found if error.pointer}

    @property
    def found(self) -> tuple[FieldError, ...]:
        """All errors, in the order of the checks."""
        return tuple(self._found)

    def add(self, pointer: str, detail: str) -> None:
        """Record that the value at a JSON pointer is wrong."""
        self.extend([FieldError(pointer, detail)])

    def extend(self, errors: Iterable[FieldError]) -> None:
        """Record errors, and stop asking for more of them at FOUND_MAX."""
        self._found += itertools.islice(errors, FOUND_MAX - len(self._found))

    def convert(
        self, fields: Mapping[str, object], kinds: Kinds, words: Mapping[str, str] = NO_WORDS
    ) -> dict[str, Any]:
        """Return the right ones of the fields that `kinds` names, converted; record the wrong ones. null is absent.

        `words` say what is allowed in a field, where the words of its type are hard to read.
        """
        values: dict[str, Any] = {}
        for name, (kind, holder) in kinds.items():
            value = fields.get(name)
            if value is None:
                continue
            try:
                values[name] = _converted(value, holder)
            except msgspec.ValidationError as error:
                pointer, bare = f"/{name}", error.with_traceback(None)
                found = [FieldError(pointer, words[name])] if name in words else _search(value, kind, pointer, bare)
                self.extend(found)
        return values

    def refuse(self) -> None:
        """Raise InvalidParams that names what was found, if anything was."""
        if self._found:
            raise self.error()

    def error(self) -> InvalidParams:
        """Return the error that names what was found."""
        named, more = self._found[:NAMED_MAX], len(self._found) - NAMED_MAX
        parts = [f"{error.pointer[1:]}: {error.detail}" if error.pointer else error.detail for error in named]
        if more > 0:
            parts.append(f"and {'at least ' if len(self._found) == FOUND_MAX else ''}{more} more")
        which = "this field" if len(self._found) == 1 else "these fields"
        return InvalidParams(f"Fix {which} and try again: {'; '.join(parts)}.", errors=tuple(named))


def compiled(kinds: Mapping[str, Any]) -> Kinds:
    """Return types of fields in a form in which values are quickly checked."""
    return {name: (kind, _holder(kind)) for name, kind in kinds.items()}


def field_error(error: msgspec.ValidationError, pointer: str = "") -> FieldError:
    """Return what msgspec found wrong in the value at `pointer`: a pointer to the exact place, and what is allowed."""
    reason, path = _ends(str(error)), ""
    found = _PLACE.search(reason)
    if found is not None:
        # msgspec does not name the key of a mapping: then the pointer is to the mapping.
        reason, path = reason[: found.start()], found[1].partition("[...]")[0]
    return FieldError(pointer + re.sub(r"\[|\.", "/", path).replace("]", ""), _in_words(reason)[:DETAIL_CHARS_MAX])


def missing(pointer: str, name: str) -> FieldError:
    """Return the error for the object at `pointer` that lacks a field."""
    return FieldError(f"{pointer}/{name}", "Required")


def integers(least: int, most: int) -> str:
    """Return the detail for a field that must be an integer within these bounds."""
    return f"Expected an integer from {least} to {most}"


# ---- inside a value --------------------------------------------------------------------------------------------------


def _search(value: object, kind: Any, pointer: str, error: msgspec.ValidationError) -> Iterator[FieldError]:
    """Yield everything that is wrong within a value that is not of its kind. msgspec stops at the first `error`."""
    inside = _inside(value, kind, pointer)
    first = next(inside, None)
    if first is None:
        wrong = _held_error(error, pointer)
        yield FieldError(wrong.pointer, _allowed(value, kind, str(error)) or wrong.detail)
    else:
        yield first
        yield from inside


def _inside(value: object, kind: Any, pointer: str) -> Iterator[FieldError]:
    """Yield what is wrong with the parts of a value, and with the number of its parts."""
    parts_of, meta = _container(kind, type(value))
    if isinstance(value, list) and parts_of is not None:
        if (error := _refused(value, Annotated[(list[Any], *meta)] if meta else list[Any])) is not None:
            yield _held_error(error, pointer)
        for index, part in enumerate(value[:PARTS_MAX]):
            if (error := _refused(part, parts_of)) is not None:
                yield from _search(part, parts_of, f"{pointer}/{index}", error)
    elif isinstance(value, dict) and parts_of is not None:
        for name, (field_kind, required) in _fields(parts_of).items():
            if name not in value:
                if required:
                    yield missing(pointer, name)
            elif (error := _refused(value[name], field_kind)) is not None:
                yield from _search(value[name], field_kind, f"{pointer}/{name}", error)


def _refused(value: object, kind: Any) -> msgspec.ValidationError | None:
    try:
        _converted(value, _holder(kind))
    except msgspec.ValidationError as error:
        # Its traceback leads to the variables that will hold it: such a circle keeps a large value in memory.
        return error.with_traceback(None)
    return None


def _converted(value: object, holder: type[msgspec.Struct]) -> Any:
    """Return a value as what a holder may hold. Raises ValidationError, whose place begins with the holder's field."""
    held: Any = msgspec.convert({"at": value}, holder, str_keys=True)
    return held.at


def _held_error(error: msgspec.ValidationError, pointer: str) -> FieldError:
    inside = field_error(error)
    return FieldError(pointer + inside.pointer.removeprefix("/at"), inside.detail)


def _allowed(value: object, kind: Any, reason: str) -> str | None:
    """Return what is allowed, where msgspec's `reason` does not contain it: one of several strings, and keys."""
    if reason.startswith("Invalid enum value"):
        return f"Expected one of {', '.join(map(str, _choices(kind)))}"[:DETAIL_CHARS_MAX]
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is dict and isinstance(value, dict):
        key_kind = get_args(kind)[0]
        name = next((meta.extra[KEYS] for meta in get_args(key_kind)[1:] if meta.extra), None)
        for key in itertools.islice(value, PARTS_MAX):
            if name is not None and _refused({key: None}, dict[key_kind, Any]) is not None:  # type: ignore[valid-type]
                return f"Expected {name} as keys, got {str(key)[:KEY_CHARS_MAX]!r}"
    return None


@cache
def _choices(kind: Any) -> tuple[object, ...]:
    """Return the values of the first Literal within a type."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return arguments
    return next(filter(None, map(_choices, arguments)), ())


@cache
def _holder(kind: Any) -> type[msgspec.Struct]:
    """Return a struct with one field of a kind. msgspec compiles a struct once, but a bare type at every call."""
    return msgspec.defstruct("Holder", [("at", kind)])


def _container(kind: Any, found: type) -> tuple[Any, tuple[Any, ...]]:
    """Return the kind of a list's items, or the struct of an object, and the constraints on it; None if it has none.

    Of a choice of kinds the one counts that a value of the type `found` was meant for.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        parts_of, meta = _container(arguments[0], found)
        return parts_of, (*arguments[1:], *meta)
    if origin in (Union, UnionType):
        choices = (_container(choice, found) for choice in arguments)
        return next((choice for choice in choices if choice[0] is not None), (None, ()))
    if found is list and origin in (list, tuple, frozenset):
        return arguments[0], ()
    if found is dict and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, ()
    return None, ()


@cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, tuple[Any, bool]]:
    """Return the kind of each field of a struct, and whether it is required."""
    hints = get_type_hints(struct, include_extras=True)
    return {field.encode_name: (hints[field.name], field.required) for field in msgspec.structs.fields(struct)}


# ---- msgspec's words -------------------------------------------------------------------------------------------------


def _ends(reason: str) -> str:
    """Return the beginning and the end of a message."""
    half = REASON_CHARS_MAX // 2
    return reason if len(reason) <= REASON_CHARS_MAX else f"{reason[:half]}…{reason[-half:]}"


def _in_words(reason: str) -> str:
    """Return a message of msgspec in JSON's words: "Expected `float` <= 2.0" is "Expected a number, at most 2"."""
    reason = re.sub("`([a-z]+(?: [|] [a-z]+)*)`", lambda found: _types(found[1]) or found[0], reason)
    return re.sub(r" (of length )?([<>]=?) (\S+?)(?:\.0)?$", _bound, reason)


def _types(names: str) -> str:
    """Return Python's types as JSON's, or nothing if these are no names of types."""
    words = [_TYPES.get(name, "") for name in names.split(" | ")]
    return " or ".join(words) if all(words) else ""


def _bound(found: re.Match[str]) -> str:
    of_length, sign, most = found.groups()
    return f"{f' {of_length}' if of_length else ', '}{_BOUNDS[sign]} {most}"


_TYPES = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_BOUNDS = {"<=": "at most", ">=": "at least", "<": "below", ">": "above"}

_PLACE = re.compile(r" - at `(?:key` in `)?\$([^`]*)`$")
"""How msgspec ends a message: "... - at `$.messages[0].role`"."""
