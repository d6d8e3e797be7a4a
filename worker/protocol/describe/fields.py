"""Schemas as people read them: types in TypeScript's notation with integers, ranges in words, a row for each field."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from worker.protocol.describe.schemas import Schema

INT_MAX = (1 << 31) - 1
"""A bound that protects the worker and is no news to anybody."""

PATTERNS = {
    "^[A-Za-z0-9_-]{16,64}$": "16 to 64 letters, digits, _ or -",
    "^[A-Za-z0-9_.@-]{0,64}$": "at most 64 letters, digits, _ . @ or -",
    "^[A-Za-z0-9_-]{1,64}$": "up to 64 letters, digits, _ or -",
}


class Field(msgspec.Struct, frozen=True):
    """One field of an object. `range` and `default` are in words, or empty."""

    name: str
    type: str
    required: bool
    range: str
    default: str
    text: str


def fields(schema: Schema) -> list[Field]:
    """Return the fields of an object, those that must be there first."""
    required = set(schema.get("required", ()))
    found = [
        Field(
            name=name,
            type=type_text(inner),
            required=name in required,
            range=range_text(inner),
            default=_default_text(inner),
            text=inner.get("description", ""),
        )
        for name, inner in schema["properties"].items()
    ]
    return sorted(found, key=lambda field: not field.required)


def type_text(schema: Schema, name: Callable[[str], str] = str, integer: str = "integer") -> str:
    """Return a type. `name` may decorate the names of types that are referred to, `integer` is what integers are."""
    if "$ref" in schema:
        return name(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " | ".join(type_text(option, name, integer) for option in schema[choice])
    if "contentSchema" in schema:
        return f"JSON of {type_text(schema['contentSchema'], name, integer)}"
    match schema.get("type"):
        case "integer":
            return integer
        case "array":
            item = type_text(schema["items"], name, integer)
            return f"({item})[]" if " | " in item else f"{item}[]"
        case "object":
            values = schema.get("additionalProperties")
            return f"Record<string, {type_text(values, name, integer) if values else 'unknown'}>"
        case None:
            return "unknown"
        case kind:
            return str(kind)


def range_text(schema: Schema) -> str:
    """Return what a value may be besides its type, in a few words."""
    parts: list[str] = []
    least, most = schema.get("minimum"), schema.get("maximum")
    most = None if most == INT_MAX else most
    if least is not None and most is not None:
        parts.append(f"{least} to {most}")
    elif "exclusiveMinimum" in schema:
        parts.append(f"above {schema['exclusiveMinimum']}" + (f", at most {most}" if most is not None else ""))
    elif least is not None:
        parts.append(f"at least {least}")
    if "maxLength" in schema:
        parts.append(f"at most {schema['maxLength']} characters")
    if "maxItems" in schema:
        parts.append(f"at most {schema['maxItems']}")
    if schema.get("minItems") == 1:
        parts.append("at least one")
    if "pattern" in schema:
        parts.append(PATTERNS.get(schema["pattern"]) or str(schema["pattern"]))
    if schema.get("format") == "date-time":
        parts.append("RFC 3339")
    return ", ".join(parts)


def _default_text(schema: Schema) -> str:
    return "" if schema.get("default") in (None, [], {}) else json.dumps(schema["default"])
