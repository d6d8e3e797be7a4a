"""AsyncAPI 3.0 of the WebSocket: one channel, one message for every frame, an operation for each way it is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from worker.operations.base import Described
from worker.protocol import corpus
from worker.protocol.describe.closes import CLOSES, may_return
from worker.protocol.describe.schemas import CLIENT, SERVER, Schema, definitions, name_of, tag_of
from worker.protocol.frames import encode

PATH = "#/components/schemas/"
CHANNEL = "socket"

DESCRIPTION = """\
One socket carries any number of jobs. Frames are JSON objects, one per text message, distinguished by `type`; ignore
types and fields that you do not know, as the worker does. Every request gets one reply, `accepted` or `error`, unless
success needs none; a job's events come after the reply.

Every event of a job has a `cursor`. After a cut, send the same `create` again with `after`: the job continues where
you were, and no event is missed or seen twice. The same jobs can be followed over HTTP (see `/docs`).
"""

CONNECTING = """\
Connect to `/v1/ws` and offer the subprotocol `jobwire.v1`. The worker speaks first, with `hello`. Where `hello.auth` is
"required", an `auth` frame must come before anything else."""

REPLIES: dict[str, tuple[str, ...]] = {
    "create": ("accepted", "error"),
    "cancel": ("accepted", "error"),
    "subscribe": ("accepted", "error"),
    "unsubscribe": ("error",),
    "update": ("accepted", "error"),
    "ack": ("error",),
    "auth": ("hello", "error"),
    "ping": ("pong", "error"),
}
"""Where success is not among them, it has no reply."""

SECURITY: Schema = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The API key: in the header `Authorization: Bearer <key>`; or, from a browser, as an offered "
        "subprotocol `bearer.<base64url of the key, without padding>`; or in an `auth` frame. A worker without keys "
        "needs none.",
    }
}


def asyncapi(operations: Iterable[Described], version: str) -> Schema:
    """Return the AsyncAPI document of a worker of this version that offers these operations."""
    tags = [tag_of(struct) for struct in (*CLIENT, *SERVER)]
    schemas = {**definitions(operations, PATH)}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Jobwire protocol",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "worker": {
                "host": "127.0.0.1:8080",
                "protocol": "ws",
                "description": "A worker, where it listens by default. Behind TLS the protocol is `wss`.",
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            }
        },
        "channels": {CHANNEL: _channel(tags)},
        "operations": {
            **{f"receive_{tag}": _receive(tag, replies) for tag, replies in REPLIES.items()},
            **{f"send_{tag_of(struct)}": _operation("send", [tag_of(struct)], struct) for struct in SERVER},
        },
        "components": {
            "messages": {tag_of(struct): _message(struct, schemas) for struct in (*CLIENT, *SERVER)},
            "schemas": schemas,
            "securitySchemes": SECURITY,
        },
    }


def examples_of(tag: str) -> list[corpus.Example[Any]]:
    """Return the examples of a frame, as JSON objects."""
    client: list[corpus.Example[Any]] = [example for example in corpus.CLIENT if example.frame["type"] == tag]
    server = [
        corpus.Example(example.name, msgspec.json.decode(encode(example.frame)), example.summary)
        for example in corpus.SERVER
        if tag_of(type(example.frame)) == tag
    ]
    return client + server


def _channel(tags: Iterable[str]) -> Schema:
    rules = "\n".join(f"- {code.value} ({may_return(code)}): {text}" for code, text in CLOSES.items())
    return {
        "address": "/v1/ws",
        "title": "The socket",
        "description": f"{CONNECTING}\n\nHow a connection ends:\n\n{rules}",
        "messages": {tag: {"$ref": f"#/components/messages/{tag}"} for tag in tags},
        "bindings": {
            "ws": {
                "method": "GET",
                "headers": {
                    "type": "object",
                    "properties": {
                        "Sec-WebSocket-Protocol": {"type": "string", "examples": ["jobwire.v1"]},
                        "Authorization": {"type": "string", "examples": ["Bearer the-api-key"]},
                    },
                },
                "bindingVersion": "0.1.0",
            }
        },
    }


def _receive(tag: str, replies: Sequence[str]) -> Schema:
    struct = next(struct for struct in CLIENT if tag_of(struct) == tag)
    reply = {"channel": {"$ref": f"#/channels/{CHANNEL}"}, "messages": _messages(replies)}
    return {**_operation("receive", [tag], struct), "reply": reply}


def _operation(action: str, tags: Sequence[str], struct: type[msgspec.Struct]) -> Schema:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{CHANNEL}"},
        "summary": (struct.__doc__ or "").partition("\n")[0],
        "messages": _messages(tags),
    }


def _messages(tags: Iterable[str]) -> list[Schema]:
    return [{"$ref": f"#/channels/{CHANNEL}/messages/{tag}"} for tag in tags]


def _message(struct: type[msgspec.Struct], schemas: dict[str, Schema]) -> Schema:
    tag, name = tag_of(struct), name_of(struct)
    made: Schema = {
        "name": tag,
        "title": tag,
        "summary": schemas[name]["description"].partition("\n")[0],
        "contentType": "application/json",
        "payload": {"$ref": PATH + name},
        "examples": [
            {"name": example.name, "summary": example.summary, "payload": example.frame} for example in examples_of(tag)
        ],
    }
    if "ref" in schemas[name]["properties"]:
        made["correlationId"] = {
            "description": "The `ref` of a request is echoed in its reply.",
            "location": "$message.payload#/ref",
        }
    return made
