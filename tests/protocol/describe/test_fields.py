"""Types of fields, as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from worker.protocol.describe.fields import type_text


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "contentSchema": {"type": "integer"}}, "JSON of integer"),
        ({"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}, "(string | integer)[]"),
        ({"type": "array", "items": {"$ref": "#/$defs/Message"}}, "Message[]"),
        ({"type": "object"}, "Record<string, unknown>"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "Record<string, number>"),
        ({"const": "end"}, '"end"'),
        ({"enum": ["ok", "required"]}, '"ok" | "required"'),
        ({}, "unknown"),
    ],
)  # fmt: skip
def test_a_type_in_words(schema: dict[str, Any], text: str) -> None:
    assert type_text(schema) == text
