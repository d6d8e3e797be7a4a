"""Schemas as people read them: types in TypeScript's notation, ranges in words, one row for each field."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec

from worker.protocol.documents.schemas import Schema


class Field(msgspec.Struct, frozen=True):
    """One field of an object: `type` in TypeScript's notation, `range` and `default` in words or empty."""

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


def type_text(schema: Schema, name: Callable[[str], str] = str) -> str:
    """Return a type in TypeScript's notation. `name` may decorate the names of types that are referred to."""
    if "$ref" in schema:
        return name(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(type_text(option, name) for option in schema["anyOf"])
    match schema.get("type"):
        case "integer":
            return "number"
        case "array":
            item = type_text(schema["items"], name)
            return f"({item})[]" if " | " in item else f"{item}[]"
        case "object":
            values = schema.get("additionalProperties")
            return f"Record<string, {type_text(values, name) if values else 'unknown'}>"
        case None:
            return "unknown"
        case kind:
            return str(kind)


def range_text(schema: Schema) -> str:
    """Return what a value may be besides its type, in a few words."""
    parts = ["integer"] if schema.get("type") == "integer" else []
    least, most = schema.get("minimum"), schema.get("maximum")
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
        parts.append(schema["pattern"])
    if schema.get("format") == "date-time":
        parts.append("RFC 3339")
    return ", ".join(parts)


def _default_text(schema: Schema) -> str:
    return "" if schema.get("default") in (None, [], {}) else json.dumps(schema["default"])
