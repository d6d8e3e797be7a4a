"""Turns the OpenAPI and AsyncAPI documents into HTML pages for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from worker.protocol.describe.closes import CLOSES, may_return
from worker.protocol.describe.errors import error_classes, meaning
from worker.protocol.describe.fields import Field, fields, type_text
from worker.protocol.describe.schemas import UNIONS, Schema, used_by

CONVERSATION = ("hello", "create", "accepted", "narration", "token", "token_merged", "end")

KEY_NOTES = {
    frozenset(): "",
    frozenset({"key"}): "Needs a key, if the worker has keys.",
    frozenset({"key", "ticket"}): "Needs a key, or the ticket in the job's `sse_url`, if the worker has keys.",
}

WIDE = 96
"""Up to this length an example is shown on one line, in characters."""


class Sample(msgspec.Struct, frozen=True):
    """An example as the page shows it."""

    summary: str
    text: str


class Reply(msgspec.Struct, frozen=True):
    """One answer of a route: its body in one line, and examples."""

    status: str
    text: str
    bodies: tuple[tuple[str, Markup], ...]
    headers: tuple[str, ...]
    samples: tuple[Sample, ...]


class Section(msgspec.Struct, frozen=True):
    """The part of a page about one route, frame or object."""

    anchor: str
    title: str
    summary: str
    text: str = ""
    method: str = ""
    note: str = ""
    deprecated: bool = False
    fields: tuple[Field, ...] = ()
    body: Markup = Markup()
    samples: tuple[Sample, ...] = ()
    replies: tuple[Reply, ...] = ()


class Group(msgspec.Struct, frozen=True):
    """Sections under one heading."""

    title: str
    text: str
    sections: tuple[Section, ...]


def http_page(openapi: Schema) -> str:
    """Return the page of the HTTP interface."""
    schemas = openapi["components"]["schemas"]
    routes = [
        (operation["tags"][0], _route(method, path, operation))
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    groups = [
        Group(tag["name"], tag["description"], tuple(section for name, section in routes if name == tag["name"]))
        for tag in openapi["tags"]
    ]
    text = openapi["info"]["description"]
    return _render("HTTP interface", openapi["info"]["version"], text, groups, schemas, "/docs")


def websocket_page(asyncapi: Schema) -> str:
    """Return the page of the WebSocket protocol."""
    schemas, messages = asyncapi["components"]["schemas"], asyncapi["components"]["messages"]
    replies = {
        operation["messages"][0]["$ref"].rpartition("/")[2]: [
            reply["$ref"].rpartition("/")[2] for reply in operation["reply"]["messages"]
        ]
        for operation in asyncapi["operations"].values()
        if "reply" in operation
    }
    frames = {tag: _frame(tag, message, schemas, replies.get(tag, ())) for tag, message in messages.items()}
    groups = [
        Group("From the client", "Requests. Each may have a `ref`, which its reply repeats.",
              tuple(section for tag, section in frames.items() if tag in replies)),
        Group("From the worker", "Replies, and the events of jobs that the connection follows.",
              tuple(section for tag, section in frames.items() if tag not in replies)),
    ]  # fmt: skip
    channel, security = asyncapi["channels"]["socket"], asyncapi["components"]["securitySchemes"]["bearer"]
    groups.insert(0, Group("Connect", "", (Section(
        anchor="connect",
        title="jobwire.v1",
        summary=f"{channel['description'].partition('How a connection ends')[0]}\n\n{security['description']}",
        samples=(_conversation(messages),),
    ),)))  # fmt: skip
    payloads = [schema for name, schema in schemas.items() if name.endswith("Frame") and name not in UNIONS]
    inside = {name: schemas[name] for name in sorted(used_by(payloads, schemas))}
    text = asyncapi["info"]["description"]
    return _render("WebSocket protocol", asyncapi["info"]["version"], text, groups, inside, "/docs/ws")


def _render(title: str, version: str, text: str, groups: Iterable[Group], schemas: dict[str, Schema], path: str) -> str:
    objects = [_object(name, schema) for name, schema in schemas.items()]
    page = _environment().get_template("page.html")
    return page.render(
        title=title,
        version=version,
        text=text,
        groups=list(groups),
        objects=objects,
        path=path,
        root="../" * (path.count("/") - 1),
        errors=[(kind.code, kind.status, kind.retriable, meaning(kind)) for kind in error_classes()],
        closes=[(code.value, may_return(code), text) for code, text in CLOSES.items()],
    )


def _object(name: str, schema: Schema) -> Section:
    """Return the section of a schema: an object with its fields, anything else with its type."""
    has_fields = "properties" in schema
    return Section(
        anchor=f"object-{name}",
        title=name,
        summary=schema["description"],
        fields=_rows(schema) if has_fields else (),
        body=Markup() if has_fields else _type(schema),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("worker.transports.pages.reference", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "inline": inline}
    return environment


def prose(text: str) -> Markup:
    """Return paragraphs as HTML."""
    return Markup("\n").join(Markup("<p>{}</p>").format(inline(part)) for part in text.strip().split("\n\n"))


def inline(text: str) -> Markup:
    """Return text with `code` as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped just before


def _link(name: str) -> str:
    return f'<a href="#object-{name}">{name}</a>'


def _type(schema: Schema) -> Markup:
    """Return a type whose names link to their sections."""
    placed = type_text(schema, lambda name: f"\x00{name}\x00")
    return Markup(re.sub("\x00(.+?)\x00", lambda found: _link(found[1]), str(escape(placed))))  # noqa: S704 - as above


def _rows(schema: Schema) -> tuple[Field, ...]:
    """Return the fields of an object, with links in their types."""
    return tuple(
        msgspec.structs.replace(field, type=_type(schema["properties"][field.name])) for field in fields(schema)
    )


def _route(method: str, path: str, operation: Schema) -> Section:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    rows = [
        Field(
            name=parameter["name"],
            type=_type(parameter["schema"]),
            required=parameter["required"],
            range=parameter["in"],
            default="",
            text=parameter["description"],
        )
        for parameter in operation["parameters"]
    ]
    keys = {"ticket" if "ticket" in way else "key" for way in operation["security"] if way}
    return Section(
        anchor=operation["operationId"],
        title=path,
        method=method.upper(),
        summary=operation["summary"],
        text=operation["description"],
        note=KEY_NOTES[frozenset(keys)],
        deprecated=operation.get("deprecated", False),
        fields=tuple(rows),
        body=_type(body["schema"]) if body else Markup(),
        samples=tuple(Sample(item["summary"], _json(item["value"])) for item in body.get("examples", {}).values()),
        replies=tuple(_reply(status, reply) for status, reply in operation["responses"].items()),
    )


def _reply(status: str, reply: Schema) -> Reply:
    bodies, samples = [], []
    for media, content in reply.get("content", {}).items():
        bodies.append((media, _type(content["schema"])))
        if "example" in content:
            samples.append(Sample("", _json(content["example"])))
        samples += [Sample(name, _json(item["value"])) for name, item in content.get("examples", {}).items()]
    return Reply(status, reply["description"], tuple(bodies), tuple(reply.get("headers", ())), tuple(samples))


def _frame(tag: str, message: Schema, schemas: dict[str, Schema], replies: Iterable[str]) -> Section:
    schema = schemas[message["payload"]["$ref"].rpartition("/")[2]]
    return Section(
        anchor=tag,
        title=tag,
        summary=schema["description"],
        note=f"Reply: {' or '.join(f'`{reply}`' for reply in replies)}" if replies else "",
        fields=_rows(schema),
        samples=tuple(Sample(example["summary"], _json(example["payload"])) for example in message["examples"]),
    )


def _conversation(messages: Schema) -> Sample:
    """Return the life of one job, composed from the examples."""
    examples = {example["name"]: example["payload"] for message in messages.values() for example in message["examples"]}
    lines = [f"{'>' if name == 'create' else '<'} {json.dumps(examples[name])}" for name in CONVERSATION]
    return Sample("The life of a job: `>` is the client, `<` the worker.", "\n".join(lines))


def _json(value: Any) -> str:
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= WIDE else json.dumps(value, ensure_ascii=False, indent=2)
