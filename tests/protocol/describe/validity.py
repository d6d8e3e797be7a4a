"""JSON Schema validation of frames and bodies against what the worker publishes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from tests.protocol.describe.renew import LIBRARY


@cache
def validator(name: str) -> Draft202012Validator:
    """Return the validator of one definition."""
    schema = {"$ref": f"#/$defs/{name}", "$defs": LIBRARY.json_schema["$defs"]}
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def faults(name: str, value: Any) -> list[str]:
    """Return what is wrong with a value, down to the choices that did not fit."""

    def told(error: Any) -> Iterator[str]:
        yield f"{error.json_path}: {error.message[:200]}"
        for inner in error.context or ():
            yield from told(inner)

    return [line for error in validator(name).iter_errors(value) for line in told(error)]


def check(name: str, value: Any) -> None:
    """Fail with every fault if a value is not what a definition says."""
    found = faults(name, value)
    assert not found, f"not a {name}: {value}\n" + "\n".join(found)


def references(document: Any) -> Iterator[str]:
    """Every reference of a document."""
    if isinstance(document, dict):
        if isinstance(document.get("$ref"), str):
            yield document["$ref"]
        for value in document.values():
            yield from references(value)
    elif isinstance(document, list):
        for value in document:
            yield from references(value)


def resolved(document: dict[str, Any], reference: str) -> Any:
    """Follow a reference within a document."""
    assert reference.startswith("#/")
    value: Any = document
    for part in reference[2:].split("/"):
        value = value[part.replace("~1", "/").replace("~0", "~")]
    return value
