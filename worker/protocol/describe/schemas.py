"""JSON Schema (2020-12) of everything on the wire, made of the structs that encode and check it.

Objects are open: a reader ignores fields that it does not know. Absent is the same as null, and is what the schemas
say.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, get_args

import msgspec

from worker.errors import Problem
from worker.operations.base import Described
from worker.protocol import credentials as tokens
from worker.protocol import frames, views

Schema: TypeAlias = dict[str, Any]

PROTOCOL_ID = "urn:jobwire:protocol:v1"
SCHEMA_PATH = "#/$defs/"
CLIENT: tuple[type[msgspec.Struct], ...] = get_args(frames.ClientFrame)
SERVER: tuple[type[msgspec.Struct], ...] = get_args(frames.ServerFrame)
EVENTS: tuple[type[msgspec.Struct], ...] = (frames.NarrationFrame, frames.TokenFrame, frames.End)
VIEWS: tuple[type[msgspec.Struct], ...] = (
    views.Created,
    views.JobList,
    views.JobDetail,
    views.CancelledView,
    views.Health,
    views.Stats,
    views.Ready,
    views.LoadingItem,
    tokens.TokenView,
    Problem,
)
REQUESTS: tuple[type[msgspec.Struct], ...] = (tokens.TokenRequest,)

UNIONS = {"ClientFrame": CLIENT, "ServerFrame": SERVER, "JobEvent": EVENTS}
UNION_TEXTS = {
    "ClientFrame": "Any frame that a client may send.",
    "ServerFrame": "Any frame that the worker sends over a WebSocket.",
    "JobEvent": "One entry of a job's log, or several merged: a stream consists of these.",
}


def name_of(struct: type[msgspec.Struct]) -> str:
    """Return the public name of a struct: frames are distinguished by their ending."""
    name = struct.__name__
    return f"{name.removesuffix('Frame')}Frame" if struct in (*CLIENT, *SERVER) else name.removesuffix("View")


def tag_of(struct: type[msgspec.Struct]) -> str:
    """Return the `type` of a frame."""
    return str(struct.__struct_config__.tag)


def json_schema(operations: Iterable[Described]) -> Schema:
    """Return the one document of all frames, and of the bodies of HTTP."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": PROTOCOL_ID,
        "title": "Jobwire protocol v1",
        "description": "Every frame, either way. The definitions also have the bodies of HTTP answers.",
        "oneOf": [{"$ref": f"{SCHEMA_PATH}{union}"} for union in ("ClientFrame", "ServerFrame")],
        "$defs": definitions(operations, SCHEMA_PATH),
    }


def definitions(operations: Iterable[Described], path: str) -> dict[str, Schema]:
    """Return the schema of every frame and body by its name. References begin with `path`."""
    structs = (*CLIENT, *SERVER, *VIEWS, *REQUESTS)
    raw = msgspec.json.schema_components(structs, ref_template=path + "{name}")[1]
    public = {struct.__name__: name_of(struct) for struct in structs}
    references = {path + name: path + public.get(name, name) for name in raw}
    made = {public.get(name, name): refined(schema, references) for name, schema in raw.items()}
    for struct in (*CLIENT, *SERVER):
        made[name_of(struct)]["properties"]["type"]["description"] = "Which frame this is."
    for struct in (*SERVER, *VIEWS):
        if not struct.__struct_config__.omit_defaults:
            # Defaults are written out, so all fields are there.
            made[name_of(struct)]["required"] = list(made[name_of(struct)]["properties"])
    offered = {operation.name: operation for operation in operations}
    create = made["CreateFrame"]
    for name in frames.Create.UNSENT:
        del create["properties"][name]
    create["description"] = create["description"].partition("\n")[0]
    made |= _add_operations(create, offered, path)
    made["CreateBody"] = _body(create)
    for name, members in UNIONS.items():
        made[name] = _union(name, members, path)
    made["StreamReset"] = {
        "title": "StreamReset",
        "description": "How a stream of server-sent events begins when the cursor was of a log that is gone: "
        "the job is replayed from its start. It has no id.",
        "type": "object",
        "properties": {"type": {"const": "accepted"}, "reset": {"const": True}},
        "required": ["type", "reset"],
    }
    return {name: {**made[name], "title": name} for name in sorted(made)}


def _add_operations(create: Schema, operations: Mapping[str, Described], path: str) -> dict[str, Schema]:
    """Put the operations' fields beside the frame's own, with those required. Return the schemas that they use."""
    used: dict[str, Schema] = {}
    choices: list[Schema] = []
    for name, operation in operations.items():
        raw = msgspec.json.schema_components([operation.params], ref_template=path + "{name}")[1]
        same = {path + other: path + other for other in raw}
        params = refined(raw.pop(operation.params.__name__), same)
        create["properties"] |= {field: params["properties"][field] for field in operation.params.__annotations__}
        used |= {other: refined(schema, same) for other, schema in raw.items()}
        choices += _choices(operation, is_default=name == create["properties"]["operation"]["default"])
    create["properties"]["operation"]["examples"] = list(operations)
    create["anyOf"] = choices
    return used


def _choices(operation: Described, *, is_default: bool) -> list[Schema]:
    """Return what a request for an operation must have: its name unless it is the default, and one of its fields."""
    named: Schema = {} if is_default else {"properties": {"operation": {"const": operation.name}}}
    name = [] if is_default else ["operation"]
    return [{**named, "required": [*name, *field]} for field in ([[field] for field in operation.one_of] or [[]])]


def _body(create: Schema) -> Schema:
    """Return the body of a POST: a create frame without what only a WebSocket has."""
    return {
        **create,
        "description": "What `create` is over a WebSocket, without `type` and `window`.",
        "properties": {name: schema for name, schema in create["properties"].items() if name not in ("type", "window")},
        "required": [name for name in create["required"] if name != "type"],
    }


def _union(name: str, members: Iterable[type[msgspec.Struct]], path: str) -> Schema:
    return {
        "title": name,
        "description": UNION_TEXTS[name],
        "oneOf": [{"$ref": path + name_of(member)} for member in members],
    }


def used_by(value: Any, schemas: Mapping[str, Schema]) -> set[str]:
    """Return the names of the schemas that a part of a document refers to, and those that they refer to."""
    found: set[str] = set()
    todo = [value]
    while todo:
        match todo.pop():
            case dict() as fields:
                todo += fields.values()
                name = str(fields.get("$ref", "")).rpartition("/")[2]
                if name in schemas and name not in found:
                    found.add(name)
                    todo.append(schemas[name])
            case list() as items:
                todo += items
    return found


def refined(schema: Any, references: Mapping[str, str]) -> Any:
    """Return a copy of a schema without Python's own ways: null for absent, tags as lists of one, its own regex."""
    if isinstance(schema, list | tuple):
        return [refined(item, references) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: refined(value, references) for key, value in schema.items() if key != "uniqueItems"}
    if "uniqueItems" in schema and "default" in made:
        # A set has no order of its own.
        made["default"] = sorted(made["default"])
    if "anyOf" in made:
        made = _without_null(made)
    if made.get("default", ()) is None:
        del made["default"]
    if isinstance(values := made.get("enum"), list) and len(values) == 1:
        made["const"] = made.pop("enum")[0]
    if isinstance(pattern := made.get("pattern"), str):
        made["pattern"] = pattern.removesuffix(r"(?!\n)")
    if isinstance(text := made.get("description"), str):
        made["description"] = _unwrapped(text)
    if isinstance(reference := made.get("$ref"), str):
        made["$ref"] = references[reference]
    return made


def _without_null(schema: Schema) -> Schema:
    """Remove null from a choice of types, and the choice itself where one type is left."""
    options = [option for option in schema["anyOf"] if option != {"type": "null"}]
    if {"type": "number"} in options:
        options = [option for option in options if option != {"type": "integer"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**options[0], **rest} if len(options) == 1 else {**rest, "anyOf": options}


def _unwrapped(text: str) -> str:
    """Return a docstring with one line per paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))
