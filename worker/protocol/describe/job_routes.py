"""The HTTP routes that concern jobs, as a table."""

from __future__ import annotations

from worker.errors import (
    BadFrame,
    Draining,
    FrameTooLarge,
    Gone,
    IdempotencyMismatch,
    InvalidParams,
    JobLost,
    JobNotFound,
    Overloaded,
    QueueFull,
    RateLimited,
    TooManyJobs,
    UnsupportedMediaType,
    UnsupportedOperation,
)
from worker.protocol import corpus
from worker.protocol.describe.route import EVENTS, Answer, Errors, Param, Route, Value
from worker.protocol.paging import DIGITS_MAX, PAGE_JOBS, PAGE_JOBS_MAX
from worker.protocol.sse import IGNORED_HEADER

RATE_LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit")
"""Of every answer to a key that has limits per minute."""

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
    text="The last cursor seen: the stream continues after it.",
    schema=CURSOR,
    example=f"{corpus.EPOCH}-2",
)
LAST_EVENT_ID = Param(
    name="Last-Event-ID",
    where="header",
    text="The same, as an EventSource sends it when it reconnects. Wins over `after`.",
    schema=CURSOR,
    example=f"{corpus.EPOCH}-2",
)
COALESCE_MS = Param(
    name="coalesce_ms",
    where="query",
    text="Least time between two token events, in ms: there are fewer and larger ones. "
    "At most `coalesce_ms_max` of the worker.",
    schema={"type": "integer", "minimum": 0},
    example=20,
)
ALL = Param(
    name="all",
    where="query",
    text="With an admin's key: the jobs of all callers, each with its `principal`.",
    schema={"enum": ["0", "1"]},
    example="0",
)
LIMIT = Param(
    name="limit",
    where="query",
    text=f"Most jobs of the page; {PAGE_JOBS} without it.",
    schema={"type": "integer", "minimum": 1, "maximum": PAGE_JOBS_MAX},
    example=20,
)
PAGE_AFTER = Param(
    name="after",
    where="query",
    text="The `next` of a page: older jobs than that page has. Opaque. It stays good when jobs are forgotten.",
    schema={"type": "string", "pattern": f"^[0-9]{{1,{DIGITS_MAX}}}$"},
    example="1767268800000000",
)
PRINCIPAL = Param(
    name="principal",
    where="query",
    text="With an admin's key: whose job it is.",
    schema={"type": "string", "maxLength": 256},
    example="",
)
IDEMPOTENCY_KEY = Param(
    name="Idempotency-Key",
    where="header",
    text="The job's id, if the body has none. The same request with the same key is the same job.",
    schema={"type": "string", "pattern": "^[A-Za-z0-9_-]{16,64}$"},
    example=corpus.ID,
)
CORRELATION_ID = Param(
    name="X-Correlation-ID",
    where="header",
    text="The caller's name for this request. It is echoed in the answer, and is in narration and logs.",
    schema={"type": "string", "maxLength": 128},
    example="order-4711",
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
    "Unnamed events, one frame each: `id` is the cursor, `data` the frame in JSON, in one line. After `end` the "
    "response ends. A comment breaks long silences. If the cursor is of a log that is gone, the stream begins with "
    "`StreamReset`, and the job is replayed from its start."
)
LEGACY_TEXT = (
    "A client whose `Accept` names neither JSON nor events is treated as one of the older worker, and gets that "
    "worker's dialect: see the deprecated routes."
)
LEGACY_STREAM_TEXT = (
    "A client whose `Accept` does not name `text/event-stream` gets the stream of the older worker, and if it does not "
    "name JSON either, that worker's errors: see the deprecated routes."
)

JOB_ROUTES: tuple[Route, ...] = (
    Route(
        method="post",
        path="/v1/jobs",
        tag="Jobs",
        name="createJob",
        summary="Create a job",
        text="The body is what `create` is over a WebSocket, and the job can be followed there as well. With "
        "`Accept: text/event-stream` the answer is the stream itself, and every event has the `job_id`. After a cut, "
        f"repeat the request with `after`, or get the job's stream. Fields that the worker does not know are ignored, "
        "and named: in `ignored`, or for a stream in its first narration and in `X-Jobwire-Ignored`. "
        f"{LEGACY_TEXT}",
        params=(IDEMPOTENCY_KEY, CORRELATION_ID),
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
                    "priority": 5,
                    "queue": {"position": 2},
                },
                headers=RATE_LIMIT_HEADERS,
            ),
            Answer(
                status=200,
                text=STREAM_TEXT,
                media=EVENTS,
                schema="JobStream",
                headers=(IGNORED_HEADER, *RATE_LIMIT_HEADERS),
            ),
            Answer(
                status=204,
                text="The job has ended, and `after` is its end: there is nothing to stream.",
                headers=(IGNORED_HEADER, *RATE_LIMIT_HEADERS),
            ),
        ),
        errors=CREATE_ERRORS,
    ),
    Route(
        method="get",
        path="/v1/jobs",
        tag="Jobs",
        name="listJobs",
        summary="List your jobs",
        text="A page of them, newest first: queued, running, and ended ones that are still kept. `next` is the `after` "
        "of the next page.",
        params=(LIMIT, PAGE_AFTER, ALL),
        key=True,
        answers=(
            Answer(
                status=200,
                text="Your jobs.",
                schema="JobList",
                example={"jobs": [ITEM], "next": "1767268800000000"},
                headers=RATE_LIMIT_HEADERS,
            ),
        ),
        errors=(InvalidParams,),
    ),
    Route(
        method="get",
        path="/v1/jobs/{job_id}",
        tag="Jobs",
        name="getJob",
        summary="Look at a job",
        text="Its state, its text so far, and the cursor from which a stream goes on after that text.",
        params=(JOB_ID,),
        key=True,
        ticket=True,
        answers=(
            Answer(
                status=200,
                text="The job as it is now.",
                schema="JobDetail",
                example={**ITEM, "text": "Hello", "cursor": f"{corpus.EPOCH}-6", "usage": USAGE, "sse_url": SSE_URL},
            ),
        ),
        errors=(JobNotFound,),
    ),
    Route(
        method="delete",
        path="/v1/jobs/{job_id}",
        tag="Jobs",
        name="cancelJob",
        summary="Cancel a job",
        text="Idempotent: cancelling a job that has ended succeeds too. The `end` event confirms it to all readers.",
        params=(JOB_ID, PRINCIPAL),
        key=True,
        answers=(
            Answer(
                status=200,
                text="The job ends now, or has ended.",
                schema="Cancelled",
                example={"job_id": corpus.ID, "status": "cancelled"},
            ),
        ),
        errors=(JobNotFound,),
    ),
    Route(
        method="get",
        path="/v1/jobs/{job_id}/stream",
        tag="Jobs",
        name="streamJob",
        summary="Stream a job as server-sent events",
        text="From its start, or from a cursor of any transport. Any number of readers may follow a job. "
        f"An EventSource resumes by itself. {LEGACY_STREAM_TEXT}",
        params=(JOB_ID, AFTER, LAST_EVENT_ID, COALESCE_MS),
        key=True,
        ticket=True,
        answers=(
            Answer(status=200, text=STREAM_TEXT, media=EVENTS, schema="AnyStream"),
            Answer(status=204, text="The job has ended and the cursor is its end: an EventSource stops for good."),
        ),
        errors=(JobNotFound, InvalidParams, Overloaded),
    ),
    Route(
        method="post",
        path="/v1/inference",
        tag="Older clients",
        name="createLegacyJob",
        summary="Create a job, as clients of the older worker do",
        text="Use `POST /v1/jobs`. The body is the same, and unknown fields are ignored.",
        body="CreateBody",
        key=True,
        deprecated=True,
        params=(IDEMPOTENCY_KEY,),
        answers=(Answer(status=200, text="The job is there.", schema="Created", headers=RATE_LIMIT_HEADERS),),
        errors=(*CREATE_ERRORS, Gone),
    ),
    Route(
        method="get",
        path="/v1/inference/{job_id}/stream",
        tag="Older clients",
        name="streamLegacyJob",
        summary="Stream a job, as clients of the older worker do",
        text="Use `GET /v1/jobs/{job_id}/stream`. Data lines in ASCII, from the job's start: `started`, `token`, "
        "`narration`, `metrics`, then `end` or `error`, then a marker: `[DONE]`, `[ERROR] ...` or `[CANCELLED]`.",
        params=(JOB_ID,),
        key=True,
        ticket=True,
        deprecated=True,
        answers=(Answer(status=200, text="The stream.", media=EVENTS, schema="LegacyStream"),),
        errors=(JobNotFound, Overloaded, Gone),
    ),
)
