"""All documents of one worker, each made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import msgspec

from worker.operations.base import Described
from worker.protocol.describe.asyncapi import asyncapi
from worker.protocol.describe.openapi import openapi
from worker.protocol.describe.schemas import Schema, json_schema
from worker.protocol.describe.tables import markdown
from worker.protocol.describe.typescript import typescript


class Library:
    """The documents of a worker of `version` that offers `operations`."""

    def __init__(self, operations: Iterable[Described], version: str) -> None:
        self._operations = tuple(operations)
        self._version = version

    @cached_property
    def json_schema(self) -> Schema:
        """JSON Schema of every frame and body."""
        return json_schema(self._operations)

    @cached_property
    def openapi(self) -> Schema:
        """OpenAPI of the HTTP routes."""
        return openapi(self._operations, self._version)

    @cached_property
    def asyncapi(self) -> Schema:
        """AsyncAPI of the WebSocket."""
        return asyncapi(self._operations, self._version)

    def openapi_below(self, prefix: str) -> Schema:
        """Return `openapi` for a caller below the path of a proxy."""
        docs = self.openapi["externalDocs"]
        servers = [{**server, "url": prefix} for server in self.openapi["servers"]]
        return {**self.openapi, "externalDocs": {**docs, "url": prefix + docs["url"]}, "servers": servers}

    def asyncapi_below(self, prefix: str) -> Schema:
        """Return `asyncapi` for a caller below the path of a proxy."""
        servers = {name: {**server, "pathname": prefix} for name, server in self.asyncapi["servers"].items()}
        return {**self.asyncapi, "servers": servers}

    @cached_property
    def typescript(self) -> str:
        """TypeScript types of every frame and body."""
        return typescript(self._operations)

    @cached_property
    def markdown(self) -> str:
        """Tables of frames, errors, close codes and routes."""
        return markdown(self._operations)

    def text(self, name: str) -> str:
        """Return a document as it is printed; `name` is one of NAMES."""
        return NAMES[name](self)


def pretty(document: Schema) -> str:
    """Return a document in JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


NAMES: dict[str, Callable[[Library], str]] = {
    "json-schema": lambda library: pretty(library.json_schema),
    "openapi": lambda library: pretty(library.openapi),
    "asyncapi": lambda library: pretty(library.asyncapi),
    "typescript": lambda library: library.typescript,
    "markdown": lambda library: library.markdown,
}
"""What can be printed."""
