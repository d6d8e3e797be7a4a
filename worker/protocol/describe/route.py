"""The description of one HTTP route: what it accepts, what it answers, how it refuses."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from worker.errors import JobwireError

JSON, EVENTS, HTML, TEXT = "application/json", "text/event-stream", "text/html", "text/plain"
Errors: TypeAlias = tuple[type[JobwireError], ...]
Value: TypeAlias = dict[str, Any]


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a request."""

    name: str
    where: Literal["path", "query", "header"]
    text: str
    schema: Value
    example: str | int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a route answers when it works. `schema` names a body, or one event of a stream; `headers` may be there."""

    status: int
    text: str
    media: str = JSON
    schema: str | None = None
    example: Any = None
    headers: tuple[str, ...] = ()


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    With `key` it needs an API key, where the worker has keys; with `ticket` the ticket of a job's `sse_url` will do.
    """

    method: Literal["get", "post", "delete"]
    path: str
    tag: str
    name: str
    summary: str
    text: str
    answers: tuple[Answer, ...]
    params: tuple[Param, ...] = ()
    body: str | None = None
    errors: Errors = ()
    key: bool = False
    ticket: bool = False
    deprecated: bool = False
