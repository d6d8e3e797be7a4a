"""Markdown tables of frames, fields, errors and close codes, for the protocol's README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import msgspec

from worker.operations.base import Described
from worker.protocol.describe.asyncapi import REPLIES, examples_of
from worker.protocol.describe.closes import CLOSES, may_return
from worker.protocol.describe.errors import error_classes, meaning
from worker.protocol.describe.fields import Field, fields
from worker.protocol.describe.routes import ROUTES
from worker.protocol.describe.schemas import CLIENT, SERVER, Schema, definitions, name_of, tag_of

PARTS = ("QueuePlace", "LikelyToken", "Usage", "Problem", "FieldError", "ServerLimits", "Message", "ResponseFormat")
"""Objects inside frames."""


def markdown(operations: Iterable[Described]) -> str:
    """Return all tables, each under a heading."""
    schemas = definitions(operations, "#/")
    parts = ["### From the client", _frames(CLIENT, schemas, with_replies=True)]
    parts += [_frame(struct, schemas) for struct in CLIENT]
    parts += ["### From the worker", _frames(SERVER, schemas, with_replies=False)]
    parts += [_frame(struct, schemas) for struct in SERVER]
    parts += ["### Objects inside frames"]
    parts += [f"#### {name}\n\n{schemas[name]['description']}\n\n{_fields(schemas[name])}" for name in PARTS]
    parts += ["### Errors", _errors(), "### Close codes", _closes(), "### HTTP routes", _routes()]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n\n", " ") for cell in row) + " |" for row in lines
    )


def _frames(structs: Iterable[type[msgspec.Struct]], schemas: dict[str, Schema], *, with_replies: bool) -> str:
    def row(struct: type[msgspec.Struct]) -> list[str]:
        tag = tag_of(struct)
        replies = [" or ".join(f"`{reply}`" for reply in REPLIES[tag])] if with_replies else []
        return [f"[`{tag}`](#{tag})", schemas[name_of(struct)]["description"], *replies]

    head = ["Frame", "What it means", *(["Reply"] if with_replies else [])]
    return _table(head, [row(struct) for struct in structs])


def _frame(struct: type[msgspec.Struct], schemas: dict[str, Schema]) -> str:
    tag = tag_of(struct)
    lines = "\n".join(json.dumps(example.frame, ensure_ascii=False) for example in examples_of(tag))
    return f"#### {tag}\n\n{_fields(schemas[name_of(struct)])}\n\n```json\n{lines}\n```"


def _fields(schema: Schema) -> str:
    def row(field: Field) -> list[str]:
        name = f"`{field.name}`" if field.required else f"`{field.name}`?"
        more = [field.range, f"default {field.default}" if field.default else ""]
        return [name, f"`{field.type}`", " ".join([field.text, *(f"({part})" for part in more if part)])]

    return _table(["Field", "Type", "What it is"], [row(field) for field in fields(schema)])


def _errors() -> str:
    rows = [
        [f"`{kind.code}`", str(kind.status), "yes" if kind.retriable else "", meaning(kind)] for kind in error_classes()
    ]
    return _table(["Code", "Status", "Retry", "What it means"], rows)


def _closes() -> str:
    return _table(
        ["Code", "What to do", "What it means"],
        [[str(code.value), may_return(code), text] for code, text in CLOSES.items()],
    )


def _routes() -> str:
    return _table(
        ["Call", "What it does"],
        [
            [f"`{route.method.upper()} {route.path}`", route.summary + (" (deprecated)" if route.deprecated else "")]
            for route in ROUTES
        ],
    )
