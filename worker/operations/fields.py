"""Checks the fields of a JSON object one by one, so that one answer names everything that is wrong with a request.

Every way in shares this: the envelope of a frame, its delivery, the body of an operation, the request for a token.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from worker.errors import FieldError, InvalidParams

NAMED_MAX = 32
"""Errors that one answer names."""

FOUND_MAX = 512
"""Errors that are searched for: a hostile body may have a million of them."""

DETAIL_CHARS_MAX = 120
"""A detail may quote a value of the client."""


NO_WORDS: Mapping[str, str] = {}


class WrongFields:
    """What is wrong with a request, as far as it has been checked."""

    def __init__(self, found: Iterable[FieldError] = ()) -> None:
        self._found: list[FieldError] = []
        self.extend(found)

    def __bool__(self) -> bool:
        return bool(self._found)

    def __contains__(self, name: str) -> bool:
        """Return whether something is wrong with the top-level field `name`, or within it."""
        return any(error.pointer.split("/")[1:2] == [name] for error in self._found)

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
        self, fields: Mapping[str, object], kinds: Mapping[str, Any], words: Mapping[str, str] = NO_WORDS
    ) -> dict[str, Any]:
        """Return the right ones of the fields that `kinds` names, converted; record the wrong ones. null is absent.

        `words` say what is allowed in a field, where the words of its type are hard to read.
        """
        values: dict[str, Any] = {}
        for name, kind in kinds.items():
            value = fields.get(name)
            if value is None:
                continue
            try:
                values[name] = msgspec.convert(value, kind, str_keys=True)
            except msgspec.ValidationError as error:
                pointer = f"/{name}"
                found = [FieldError(pointer, words[name])] if name in words else _search(value, kind, pointer, error)
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
        return InvalidParams(f"Fix {which} and send it again: {'; '.join(parts)}.", errors=tuple(named))


def field_error(error: msgspec.ValidationError, pointer: str = "") -> FieldError:
    """Return what msgspec found wrong in the value at `pointer`: a pointer to the exact place, and what is allowed."""
    reason, path = str(error), ""
    found = _PLACE.search(reason)
    if found is not None:
        # msgspec does not name the key of a mapping: then the pointer is to the mapping.
        reason, path = reason[: found.start()], found[1].partition("[...]")[0]
    return FieldError(pointer + re.sub(r"\[|\.", "/", path).replace("]", ""), _in_words(reason)[:DETAIL_CHARS_MAX])


def missing(pointer: str, name: str) -> FieldError:
    """Return the error for the object at `pointer` that lacks a field."""
    return FieldError(pointer, f"Object missing required field `{name}`")


# ---- inside a value --------------------------------------------------------------------------------------------------


def _search(value: object, kind: Any, pointer: str, error: msgspec.ValidationError) -> Iterator[FieldError]:
    """Yield everything that is wrong within a value that is not of its kind. msgspec stops at the first `error`."""
    inside = _inside(value, kind, pointer)
    first = next(inside, None)
    if first is None:
        yield field_error(error, pointer)
    else:
        yield first
        yield from inside


def _inside(value: object, kind: Any, pointer: str) -> Iterator[FieldError]:
    """Yield what is wrong with the parts of a value, and with the number of its parts."""
    parts_of, meta = _container(kind, type(value))
    if isinstance(value, list) and parts_of is not None:
        if (error := _refused(value, Annotated[(list[Any], *meta)] if meta else list[Any])) is not None:
            yield field_error(error, pointer)
        for index, part in enumerate(value):
            if (error := _refused(part, parts_of)) is not None:
                yield from _search(part, parts_of, f"{pointer}/{index}", error)
    elif isinstance(value, dict) and parts_of is not None:
        hints = _hints(parts_of)
        for field in msgspec.structs.fields(parts_of):
            if field.encode_name not in value:
                if field.required:
                    yield missing(pointer, field.encode_name)
            elif (error := _refused(value[field.encode_name], hints[field.name])) is not None:
                yield from _search(value[field.encode_name], hints[field.name], f"{pointer}/{field.encode_name}", error)


def _refused(value: object, kind: Any) -> msgspec.ValidationError | None:
    try:
        msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        return error
    return None


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
def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(struct, include_extras=True)


# ---- msgspec's words -------------------------------------------------------------------------------------------------


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
