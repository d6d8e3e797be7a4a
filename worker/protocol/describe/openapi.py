"""OpenAPI 3.1 of every HTTP route, made of the table of routes, the schemas and the tree of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from worker.errors import BusyError, InvalidParams, JobwireError, RateLimited
from worker.operations.base import Described
from worker.protocol import corpus
from worker.protocol.describe import errors
from worker.protocol.describe.route import JSON, Answer, Param, Route
from worker.protocol.describe.routes import EVERYWHERE, ROUTES, WITH_KEY
from worker.protocol.describe.schemas import UNIONS, Schema, definitions, name_of, tag_of, used_by
from worker.protocol.sse import IGNORED_HEADER

PATH = "#/components/schemas/"
PROBLEM = "application/problem+json"

DESCRIPTION = """\
A job is an append-only log of events, owned by the worker and never by a connection. Create one, follow it from any
cursor, over server-sent events or the WebSocket at `/v1/ws` (see `/docs/ws`), and come back after a cut: no event is
missed or seen twice.

Every error is a problem object (RFC 9457) with a stable `code`. Retry only when it has `retry_after_ms`.
"""

LEGACY_TYPES = ("started", "token", "narration", "metrics", "end", "error")
LEGACY_MARKER = r"^\[(DONE|CANCELLED|ERROR)\]"

TAGS = {
    "Jobs": "Create, follow and cancel jobs.",
    "Access": "Keys and what they allow.",
    "Worker": "How the worker is.",
    "Documents": "What describes all this.",
    "Older clients": "What clients of the older worker call. Their errors have its keys beside those of a problem.",
}

SECURITY: Schema = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The API key: `Authorization: Bearer <key>`. A worker without keys needs none.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "Of the `sse_url` that the worker gives out, for an EventSource, which cannot send headers.",
    },
}

HEADERS: Schema = {
    "Retry-After": {"description": "When to try again, in seconds.", "schema": {"type": "integer", "minimum": 0}},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}},
    "Deprecation": {"description": "Since when the call is deprecated (RFC 9745).", "schema": {"type": "string"}},
    "Sunset": {"description": "When the call will be gone (RFC 8594).", "schema": {"type": "string"}},
    "Link": {"description": "What to call instead.", "schema": {"type": "string"}},
    IGNORED_HEADER: {
        "description": "Fields of the body that the worker does not know: 8 names at most, percent-encoded, with "
        "commas between them.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "The limits of the key: `q` jobs, or tokens of prompt and output, per `w` seconds. Without "
        "limits it is absent.",
        "schema": {"type": "string"},
        "example": '"jobs";q=600;w=60, "tokens";q=200000;w=60',
    },
    "RateLimit": {
        "description": "What is left of them: `r` now, and all of it after `t` seconds without use.",
        "schema": {"type": "string"},
        "example": '"jobs";r=598;t=1, "tokens";r=198500;t=1',
    },
    "ETag": {"description": "Of this version of the document.", "schema": {"type": "string"}},
}


def openapi(operations: Iterable[Described], version: str) -> Schema:
    """Return the OpenAPI document of a worker of this version that offers these operations."""
    paths: dict[str, Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    tags, schemas = {route.tag for route in ROUTES}, _schemas(operations)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Jobwire",
            "version": version,
            "summary": "The realtime LLM worker, over HTTP.",
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "externalDocs": {"description": "The same jobs over a WebSocket", "url": "/docs/ws"},
        "servers": [{"url": "/", "description": "This worker."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items() if name in tags],
        "paths": paths,
        "components": {
            "schemas": {name: schemas[name] for name in sorted(used_by(paths, schemas))},
            "securitySchemes": SECURITY,
            "headers": HEADERS,
        },
    }


def _schemas(operations: Iterable[Described]) -> dict[str, Schema]:
    made = definitions(operations, PATH)
    for name, members in UNIONS.items():
        mapping = {tag_of(member): PATH + name_of(member) for member in members}
        made[name]["discriminator"] = {"propertyName": "type", "mapping": mapping}
    made["Document"] = {"title": "Document", "description": "A document in JSON.", "type": "object"}
    frame = {"anyOf": [{"$ref": PATH + "JobEvent"}, {"$ref": PATH + "StreamReset"}]}
    made["JobStream"] = _stream("An event of a job.", _json_text("One frame.", frame), "The cursor.")
    item = {"anyOf": [{"const": "[DONE]"}, _json_text("", {"$ref": PATH + "LoadingItem"})]}
    made["LoadingStream"] = _stream("A change.", {"type": "string", "description": "One item, or `[DONE]`.", **item})
    legacy = {"type": "object", "properties": {"type": {"enum": list(LEGACY_TYPES)}}, "required": ["type"]}
    line = {"description": "A JSON object, or a marker.", "anyOf": [{"pattern": LEGACY_MARKER}, _json_text("", legacy)]}
    made["LegacyStream"] = _stream("An event of a job, for older clients.", {"type": "string", **line})
    either = [{"$ref": PATH + "JobStream"}, {"$ref": PATH + "LegacyStream"}]
    made["AnyStream"] = {"description": "An event of a job, in the dialect that `Accept` asks for.", "anyOf": either}
    return made


def _stream(text: str, data: Schema, event_id: str = "") -> Schema:
    """Return one server-sent event. Before version 3.2, that is what the schema of an event stream describes."""
    properties: Schema = {"data": data}
    if event_id:
        properties["id"] = {"type": "string", "description": event_id}
    return {"description": text, "type": "object", "properties": properties, "required": ["data"]}


def _json_text(text: str, schema: Schema) -> Schema:
    described = {"description": text} if text else {}
    return {"type": "string", **described, "contentMediaType": JSON, "contentSchema": schema}


def _operation(route: Route) -> Schema:
    made: Schema = {
        "tags": [route.tag],
        "operationId": route.name,
        "summary": route.summary,
        "description": route.text,
        "parameters": [_parameter(param) for param in route.params],
        "responses": _responses(route),
        "security": _security(route),
    }
    if route.body is not None:
        content = {"schema": {"$ref": PATH + route.body}, "examples": BODIES[route.body]()}
        made["requestBody"] = {"required": True, "content": {JSON: content}}
    return {**made, "deprecated": True} if route.deprecated else made


def _creations() -> Schema:
    """Examples of bodies that create a job: those of frames, but for the window that only a WebSocket has."""
    made = {
        example.name: {
            "summary": example.summary,
            "value": {name: value for name, value in example.frame.items() if name != "type"},
        }
        for example in corpus.CLIENT
        if example.frame["type"] == "create" and "window" not in example.frame
    }
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story about a fox"}]
    value = {"messages": messages, "max_tokens": 256, "temperature": 0.7, "seed": 7, "detach": True}
    return {**made, "conversation": {"summary": "A conversation, for a detached job.", "value": value}}


def _token_requests() -> Schema:
    return {
        "page": {"summary": "For a page of the worker's own origin.", "value": {"ttl_s": 600, "cookie": True}},
        "user": {"summary": "For one user of yours.", "value": {"user": "anna"}},
    }


BODIES: dict[str, Callable[[], Schema]] = {"CreateBody": _creations, "TokenRequest": _token_requests}


def _security(route: Route) -> list[Schema]:
    """No key at all may do too: whether there are keys is a matter of settings."""
    if not route.key:
        return []
    ticket: list[Schema] = [{"ticket": []}] if route.ticket else []
    return [{"bearer": []}, *ticket, {}]


def _parameter(param: Param) -> Schema:
    return {
        "name": param.name,
        "in": param.where,
        "description": param.text,
        "required": param.where == "path",
        "schema": param.schema,
        "example": param.example,
    }


def _responses(route: Route) -> Schema:
    responses: dict[str, Schema] = {}
    for answer in route.answers:
        response = responses.setdefault(str(answer.status), {"description": answer.text})
        if answer.status != 204:
            response.setdefault("content", {})[answer.media] = _content(answer)
        names = ["ETag"] if route.tag == "Documents" and route.path != "/" else []
        names += ["Deprecation", "Sunset", "Link"] if route.deprecated else []
        names += answer.headers
        if names:
            response["headers"] = _headers(names)
    for status, kinds in sorted(_by_status(route).items()):
        responses[str(status)] = _refusal(kinds)
    return responses


def _content(answer: Answer) -> Schema:
    made: Schema = {"schema": {"type": "string"} if answer.schema is None else {"$ref": PATH + answer.schema}}
    return made if answer.example is None else {**made, "example": answer.example}


def _by_status(route: Route) -> dict[int, list[type[JobwireError]]]:
    kinds: dict[int, list[type[JobwireError]]] = {}
    for kind in (*(WITH_KEY if route.key else EVERYWHERE), *route.errors):
        # The older dialect calls every wrong parameter a bad request; so may a client of /v1/jobs that speaks it.
        for status in {kind.status, 400} if kind is InvalidParams else {kind.status}:
            kinds.setdefault(status, []).append(kind)
    return kinds


def _refusal(kinds: list[type[JobwireError]]) -> Schema:
    response: Schema = {
        "description": " ".join(f"`{kind.code}`: {errors.meaning(kind)}" for kind in kinds),
        "content": {
            PROBLEM: {
                "schema": {"$ref": PATH + "Problem"},
                "examples": {kind.code: {"summary": kind.title, "value": _problem(kind)} for kind in kinds},
            }
        },
    }
    names = []
    if any(issubclass(kind, BusyError) for kind in kinds):
        names.append("Retry-After")
    if RateLimited in kinds:
        names += ["RateLimit-Policy", "RateLimit"]
    if any(kind.status == 401 for kind in kinds):
        names.append("WWW-Authenticate")
    return {**response, "headers": _headers(names)} if names else response


def _headers(names: Iterable[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problem(kind: type[JobwireError]) -> Schema:
    made: Schema = msgspec.json.decode(msgspec.json.encode(errors.example(kind).problem()))
    return made
