"""Every HTTP route as a table: what it takes, what it answers, how it refuses. OpenAPI and its page are made of it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from worker.errors import (
    BadFrame,
    Draining,
    Forbidden,
    FrameTooLarge,
    IdempotencyMismatch,
    InvalidParams,
    JobLost,
    JobNotFound,
    JobwireError,
    Overloaded,
    QueueFull,
    RateLimited,
    TooManyJobs,
    Unauthorized,
    UnsupportedMediaType,
    UnsupportedOperation,
)
from worker.protocol import corpus

JSON, EVENTS, HTML, TEXT = "application/json", "text/event-stream", "text/html", "text/plain"
Errors: TypeAlias = tuple[type[JobwireError], ...]
Value: TypeAlias = dict[str, Any]


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a request."""

    name: str
    where: Literal["path", "query", "header"]
    text: str
    schema: Value
    example: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a route answers when it works. `schema` names a body, or one event of a stream."""

    status: int
    text: str
    media: str = JSON
    schema: str | None = None
    example: Any = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. With `key` it needs an API key, where the worker has keys."""

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
    deprecated: bool = False


CURSOR: Value = {"type": "string", "maxLength": 64}
JOB_ID = Param(
    name="job_id",
    where="path",
    text="The job.",
    schema={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    example=corpus.ID,
)
AFTER = Param(
    name="after",
    where="query",
    text="The last cursor seen: the stream goes on after it.",
    schema=CURSOR,
    example=f"{corpus.EPOCH}-2",
)
LAST_EVENT_ID = Param(
    name="Last-Event-ID",
    where="header",
    text="The same, as an EventSource sends it when it comes back. Wins over `after`.",
    schema=CURSOR,
    example=f"{corpus.EPOCH}-2",
)
TICKET = Param(
    name="ticket",
    where="query",
    text="Part of the `sse_url` that the worker gives out: stands for the key, for reading this job only.",
    schema={"type": "string", "maxLength": 1024},
    example="",
)
IDEMPOTENCY_KEY = Param(
    name="Idempotency-Key",
    where="header",
    text="The job's id, if the body has none. The same request with the same key is the same job.",
    schema={"type": "string", "pattern": "^[A-Za-z0-9_-]{16,64}$"},
    example=corpus.ID,
)

CREATE_ERRORS: Errors = (
    BadFrame,
    UnsupportedOperation,
    JobLost,
    FrameTooLarge,
    UnsupportedMediaType,
    InvalidParams,
    IdempotencyMismatch,
    RateLimited,
    QueueFull,
    TooManyJobs,
    Draining,
    Overloaded,
)
USAGE: Value = {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0, "queue_ms": 12, "total_ms": 96}
ITEM: Value = {
    "job_id": corpus.ID,
    "state": "running",
    "operation": "infer",
    "priority": 5,
    "created_at": "2026-01-01T12:00:00Z",
}
SSE_URL = f"/v1/jobs/{corpus.ID}/stream"
STREAM_TEXT = (
    "Unnamed events, one frame each: `id` is the cursor, `data` the frame in JSON. After `end` the response ends. "
    "A comment breaks long silences. If the cursor is of a log that is gone, the stream begins with `StreamReset` "
    "and tells the job from its start."
)
LEGACY_TEXT = (
    "A client whose `Accept` names neither JSON nor events is taken for one of the older worker, and gets that "
    "worker's dialect: see the deprecated routes."
)

ROUTES: tuple[Route, ...] = (
    Route(
        method="post",
        path="/v1/jobs",
        tag="Jobs",
        name="createJob",
        summary="Create a job",
        text="The body is what `create` is over a WebSocket, and the job can be followed there as well. With "
        f"`Accept: text/event-stream` the answer is the stream itself. {LEGACY_TEXT}",
        params=(IDEMPOTENCY_KEY,),
        body="CreateBody",
        key=True,
        answers=(
            Answer(
                status=200,
                text="The job is there: new, or the one that this id had already.",
                schema="Created",
                example={
                    "job_id": corpus.ID,
                    "sse_url": SSE_URL,
                    "ws_url": "/v1/ws",
                    "state": "queued",
                    "queue": {"position": 2},
                },
            ),
            Answer(status=200, text=STREAM_TEXT, media=EVENTS, schema="JobStream"),
            Answer(status=204, text="The job has ended, and `after` is its end: there is nothing to stream."),
        ),
        errors=CREATE_ERRORS,
    ),
    Route(
        method="get",
        path="/v1/jobs",
        tag="Jobs",
        name="listJobs",
        summary="List your jobs",
        text="Queued, running, and ended ones that are still kept.",
        key=True,
        answers=(Answer(status=200, text="Your jobs.", schema="JobList", example={"jobs": [ITEM]}),),
        errors=(RateLimited,),
    ),
    Route(
        method="get",
        path="/v1/jobs/{job_id}",
        tag="Jobs",
        name="getJob",
        summary="Look at a job",
        text="Its state, its text so far, and the cursor from which a stream goes on behind that text.",
        params=(JOB_ID,),
        key=True,
        answers=(
            Answer(
                status=200,
                text="The job as it is now.",
                schema="JobDetail",
                example={**ITEM, "text": "Hello", "cursor": f"{corpus.EPOCH}-6", "usage": USAGE, "sse_url": SSE_URL},
            ),
        ),
        errors=(JobNotFound, RateLimited),
    ),
    Route(
        method="delete",
        path="/v1/jobs/{job_id}",
        tag="Jobs",
        name="cancelJob",
        summary="Cancel a job",
        text="Idempotent: also a job that has ended is a success. The `end` event confirms it to all readers.",
        params=(JOB_ID,),
        key=True,
        answers=(
            Answer(
                status=200,
                text="The job ends now, or has ended.",
                schema="Cancelled",
                example={"job_id": corpus.ID, "status": "cancelled"},
            ),
        ),
        errors=(JobNotFound, RateLimited),
    ),
    Route(
        method="get",
        path="/v1/jobs/{job_id}/stream",
        tag="Jobs",
        name="streamJob",
        summary="Stream a job as server-sent events",
        text="From its start, or from a cursor of any transport. Any number of readers may follow a job. "
        f"An EventSource resumes by itself. {LEGACY_TEXT}",
        params=(JOB_ID, AFTER, LAST_EVENT_ID, TICKET),
        key=True,
        answers=(
            Answer(status=200, text=STREAM_TEXT, media=EVENTS, schema="AnyStream"),
            Answer(status=204, text="The job has ended and the cursor is its end: an EventSource stops for good."),
        ),
        errors=(JobNotFound, RateLimited, Overloaded),
    ),
    Route(
        method="get",
        path="/health",
        tag="Worker",
        name="getHealth",
        summary="Whether the worker does its work",
        text="For whoever restarts workers. A worker that loads its model is healthy.",
        answers=(
            Answer(
                status=200,
                text="It does, or will.",
                schema="Health",
                example={"status": "healthy", "version": "0.1.0", "engine_phase": "ready"},
            ),
            Answer(
                status=503,
                text="There is no usable model.",
                schema="Health",
                example={"status": "unhealthy", "version": "0.1.0", "engine_phase": "failed"},
            ),
        ),
    ),
    Route(
        method="get",
        path="/v1/ready",
        tag="Worker",
        name="getReady",
        summary="Whether a job would start now",
        text="For whoever sends jobs to workers.",
        answers=(
            Answer(
                status=200,
                text="It would.",
                schema="Ready",
                example={"ready": True, "state": "idle", "model_loaded": True},
            ),
            Answer(
                status=503,
                text="It would wait for the model, or the worker shuts down.",
                schema="Ready",
                example={"ready": False, "state": "loading", "model_loaded": False},
            ),
        ),
    ),
    Route(
        method="get",
        path="/v1/loading/progress",
        tag="Worker",
        name="streamLoading",
        summary="Watch the model being loaded",
        text="A stream of data lines that ends with `[DONE]`.",
        answers=(Answer(status=200, text="One event for every change.", media=EVENTS, schema="LoadingStream"),),
    ),
    Route(
        method="post",
        path="/v1/inference",
        tag="Older clients",
        name="createLegacyJob",
        summary="Create a job, as clients of the older worker do",
        text="Use `POST /v1/jobs`. Unknown fields are ignored.",
        body="CreateBody",
        key=True,
        deprecated=True,
        params=(IDEMPOTENCY_KEY,),
        answers=(Answer(status=200, text="The job is there.", schema="Created"),),
        errors=CREATE_ERRORS,
    ),
    Route(
        method="get",
        path="/v1/inference/{job_id}/stream",
        tag="Older clients",
        name="streamLegacyJob",
        summary="Stream a job, as clients of the older worker do",
        text="Use `GET /v1/jobs/{job_id}/stream`. Data lines in ASCII, from the job's start: `started`, `token`, "
        "`narration`, `metrics`, then `end` or `error`, then a marker: `[DONE]`, `[ERROR] ...` or `[CANCELLED]`.",
        params=(JOB_ID, TICKET),
        key=True,
        deprecated=True,
        answers=(Answer(status=200, text="The stream.", media=EVENTS, schema="LegacyStream"),),
        errors=(JobNotFound, RateLimited, Overloaded),
    ),
    Route(
        method="get",
        path="/",
        tag="Documents",
        name="getIndex",
        summary="The playground",
        text="A page to talk to the worker, for browsers. Other programs get a list of all this in plain text.",
        answers=(
            Answer(status=200, text="The page, or the list.", media=HTML),
            Answer(status=200, text="The list.", media=TEXT),
        ),
    ),
    *(
        Route(
            method="get",
            path=path,
            tag="Documents",
            name=name,
            summary=summary,
            text="Made of the code that it describes. Has an `ETag`.",
            answers=(
                Answer(status=200, text="The document.", media=media, schema=None if media == HTML else "Document"),
            ),
        )
        for path, name, summary, media in (
            ("/docs", "getDocs", "This interface, for people", HTML),
            ("/docs/ws", "getWebSocketDocs", "The WebSocket protocol, for people", HTML),
            ("/openapi.json", "getOpenApi", "This interface as OpenAPI 3.1", JSON),
            ("/asyncapi.json", "getAsyncApi", "The WebSocket protocol as AsyncAPI 3", JSON),
            ("/schema.json", "getJsonSchema", "All frames and bodies as JSON Schema", JSON),
        )
    ),
)

EVERYWHERE: Errors = (Forbidden,)
WITH_KEY: Errors = (Unauthorized, Forbidden)
