"""The TypeScript types have every frame and field, and a compiler takes and refuses with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.describe.renew import LIBRARY
from tests.support.node import node
from worker.protocol import corpus, frames
from worker.protocol.describe.fields import fields, range_text, type_text
from worker.protocol.describe.schemas import UNIONS, name_of

TEXT = LIBRARY.typescript
DEFINITIONS: dict[str, Any] = LIBRARY.json_schema["$defs"]
INTERFACES = {
    found[1]: found[2]
    for found in re.finditer(r"^export interface (\w+) \{\n(.*?)^\}$", TEXT, re.MULTILINE | re.DOTALL)
}


def test_every_definition_is_declared() -> None:
    assert set(INTERFACES) == set(DEFINITIONS) - set(UNIONS)
    for name, members in UNIONS.items():
        found = re.search(rf"^export type {name} =\n((?:  \| \w+\n?)+)", TEXT, re.MULTILINE)
        assert found
        assert set(re.findall(r"\w+", found[1])) == {name_of(member) for member in members}


@pytest.mark.parametrize("name", INTERFACES)
def test_every_field_is_declared_and_optional_where_it_may_be_absent(name: str) -> None:
    declared = {found[0]: found[1] for found in re.findall(r"^  (\w+)(\??): .+;$", INTERFACES[name], re.MULTILINE)}
    assert declared == {field.name: "" if field.required else "?" for field in fields(DEFINITIONS[name])}


@pytest.mark.parametrize("name", INTERFACES)
def test_every_name_that_is_used_is_declared(name: str) -> None:
    without_comments = re.sub(r"/\*\*.*?\*/", "", INTERFACES[name], flags=re.DOTALL)
    used = set(re.findall(r"\b[A-Z]\w+", re.sub(r'"[^"]*"', "", without_comments))) - {"Record"}
    assert used <= {*INTERFACES, "ErrorCode"}


def test_lines_are_short_and_comments_whole() -> None:
    assert max(len(line) for line in TEXT.splitlines()) <= 200
    assert TEXT.count("/**") == TEXT.count("*/")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "string"),
        ({"type": "integer"}, "integer"),
        ({"const": "create"}, '"create"'),
        ({"const": True}, "true"),
        ({"enum": ["a", "b"]}, '"a" | "b"'),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, '("a" | "b")[]'),
        ({"type": "array", "items": {"type": "array", "items": {"$ref": "#/x/Y"}}}, "Y[][]"),
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, "string | string[]"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "Record<string, number>"),
        ({"type": "object"}, "Record<string, unknown>"),
        ({}, "unknown"),
    ],
    ids=str,
)
def test_types_in_words(schema: dict[str, Any], expected: str) -> None:
    assert type_text(schema) == expected
    assert type_text(schema, integer="number") == expected.replace("integer", "number")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"minimum": 0, "maximum": 9}, "0 to 9"),
        ({"minimum": 0, "maximum": 2**31 - 1}, "at least 0"),
        ({"exclusiveMinimum": 0, "maximum": 1}, "above 0, at most 1"),
        ({"minLength": 1, "maxLength": 64}, "at most 64 characters"),
        ({"type": "array", "minItems": 1}, "at least one"),
        ({"type": "array", "maxItems": 16}, "at most 16"),
        ({"pattern": "^[A-Za-z0-9_-]{16,64}$"}, "16 to 64 letters, digits, _ or -"),
        ({"pattern": "^a$"}, "^a$"),
        ({"format": "date-time"}, "RFC 3339"),
        ({"type": "string"}, ""),
    ],
    ids=str,
)
def test_ranges_in_words(schema: dict[str, Any], expected: str) -> None:
    assert range_text(schema) == expected


PROGRAM = """\
import type { ClientFrame, CloseCode, ErrorCode, FrameOf, JobEvent, ServerFrame } from "./protocol";

const sent: ClientFrame[] = %s;
const got: ServerFrame[] = %s;

function show(frame: ServerFrame): string {
  switch (frame.type) {
    case "hello": return `${frame.protocol} ${frame.limits.max_window}`;
    case "accepted": return frame.queue ? `${frame.queue.position}` : frame.state;
    case "narration": return frame.human;
    case "token": return frame.text + (frame.top_logprobs?.[0]?.[0]?.text ?? "");
    case "end": return frame.error?.code ?? frame.status;
    case "error": return frame.error.detail;
    case "pong": return `${frame.t}`;
    case "goaway": return frame.reason;
    default: { const never: never = frame; return never; }
  }
}
const event: JobEvent = { type: "token", job_id: "x", cursor: "y", text: "z" };
const token: FrameOf<"token"> = event;
const code: ErrorCode = "queue_full", later: ErrorCode = "of_a_later_version", close: CloseCode = 4401;
// @ts-expect-error  a frame without its job
const lacking: ClientFrame = { type: "cancel" };
// @ts-expect-error  no such frame
const unknown: ClientFrame = { type: "jump" };
// @ts-expect-error  no such channel
const wrong: ClientFrame = { type: "create", prompt: "Hi", channels: ["all"] };
// @ts-expect-error  no such field
const misspelt: ClientFrame = { type: "create", prompt: "Hi", maxTokens: 1 };
export { sent, got, show, token, code, later, close, lacking, unknown, wrong, misspelt };
"""


def test_a_compiler_takes_the_corpus_and_refuses_what_is_wrong(node_modules: Path, tmp_path: Path) -> None:
    server = [json.loads(frames.encode(example.frame)) for example in corpus.SERVER]
    program = PROGRAM % (json.dumps([example.frame for example in corpus.CLIENT]), json.dumps(server))
    (tmp_path / "protocol.d.ts").write_text(TEXT, encoding="utf-8")
    (tmp_path / "program.ts").write_text(program, encoding="utf-8")
    options = ("--strict", "--noEmit", "--target", "es2022", "--module", "nodenext")
    node(node_modules / "typescript/bin/tsc", *options, "program.ts", cwd=tmp_path)
