"""The tree of errors that a client can meet: each has a stable code, an HTTP status, and whether a retry helps.

::

    JobwireError
     +-- RequestError                   the request is wrong: do not repeat it unchanged
     |    +-- BadFrame                    400 bad_frame
     |    +-- UnsupportedOperation        400 unsupported_operation
     |    +-- Unauthorized                401 unauthorized
     |    +-- Forbidden                   403 forbidden
     |    +-- JobNotFound                 404 job_not_found
     |    +-- JobLost                     410 job_lost
     |    +-- Gone                        410 gone
     |    +-- FrameTooLarge               413 frame_too_large
     |    +-- UnsupportedMediaType        415 unsupported_media_type
     |    +-- InvalidParams               422 invalid_params
     |    +-- IdempotencyMismatch         422 idempotency_mismatch
     +-- BusyError                      the request is correct: try again after `retry_after_ms`
     |    +-- RateLimited                 429 rate_limited
     |    +-- QueueFull                   429 queue_full
     |    +-- TooManyJobs                 429 too_many_jobs
     |    +-- Draining                    503 draining
     |    +-- Overloaded                  503 overloaded
     +-- EngineError                    the engine could not carry out the request
     |    +-- EngineFailed                500 engine_failed
     |    +-- ModelError                  503 model_unavailable
     +-- DeadlineExceeded                 504 deadline_exceeded
     +-- ConfigError                    a setting is wrong: the program does not start

On the wire an error is a problem object (RFC 9457), built here so that HTTP, WebSocket and the log agree.
"""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Self

import msgspec
from msgspec import Meta

QUOTED_CHARS_MAX = 200
"""Characters of a client's text that an answer or a log line repeats."""


def shortened(text: str) -> str:
    """Return what a client sent, cut to QUOTED_CHARS_MAX."""
    return text if len(text) <= QUOTED_CHARS_MAX else f"{text[: QUOTED_CHARS_MAX - 1]}…"


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field: `pointer` is a JSON pointer into the request (RFC 6901), `detail` names the values allowed."""

    pointer: Annotated[str, Meta(description="JSON pointer to the field.")]
    detail: Annotated[str, Meta(description="What is allowed there.")]


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The wire form of an error (RFC 9457). `retry_after_ms` is present if and only if a retry makes sense."""

    type: Annotated[str, Meta(description="URN of the kind of error.")]
    title: Annotated[str, Meta(description="The kind of error, in words.")]
    status: Annotated[int, Meta(description="HTTP status, over every transport.")]
    detail: Annotated[str, Meta(description="One sentence for a person.")]
    code: Annotated[str, Meta(description="The kind of error, for programs: stable.")]
    # Required on the wire: without a default it is never omitted.
    retriable: Annotated[bool, Meta(description="Whether the same request may succeed later.")]
    retry_after_ms: Annotated[int | None, Meta(description="Wait before a retry in ms, if a retry makes sense.")] = None
    errors: Annotated[tuple[FieldError, ...], Meta(description="Each wrong field.")] = ()


class JobwireError(Exception):
    """Base of all errors that a client or operator can act on. `detail` is one sentence for a person."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retriable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after_ms: int | None = None, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_ms = retry_after_ms
        self.errors = errors

    def shorter(self) -> Self:
        """Return the same error with half as many fields named, and a detail of half the length."""
        small = copy.copy(self)
        small.errors = self.errors[: len(self.errors) // 2]
        small.detail = f"{self.detail[: len(self.detail) // 2]}…"
        return small

    def problem(self) -> Problem:
        """Return the RFC 9457 object for this error."""
        return Problem(
            type=f"urn:jobwire:error:{self.code}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            code=self.code,
            retriable=self.retriable,
            retry_after_ms=self.retry_after_ms,
            errors=self.errors,
        )


class RequestError(JobwireError):
    """The request is wrong; the same request will fail again."""

    status = 400


class BadFrame(RequestError):
    """Not JSON, not an object, or no known `type`."""

    code, title = "bad_frame", "Frame not understood"


class UnsupportedOperation(RequestError):
    """The operation is unknown to this worker."""

    code, title = "unsupported_operation", "Operation not supported"


class Unauthorized(RequestError):
    """No key, or a wrong one."""

    code, status, title = "unauthorized", 401, "Authentication needed"


class Forbidden(RequestError):
    """The Origin, the Host or the caller is not allowed to do this."""

    code, status, title = "forbidden", 403, "Not allowed"


class JobNotFound(RequestError):
    """There is no such job, or it is another owner's."""

    code, status, title = "job_not_found", 404, "Job not found"


class JobLost(RequestError):
    """The client resumes a job that this worker does not know: the worker never runs it again silently."""

    code, status, title = "job_lost", 410, "Job lost"


class Gone(RequestError):
    """A path that this version no longer has."""

    code, status, title = "gone", 410, "No longer available"


class FrameTooLarge(RequestError):
    """A request body or a frame is over its limit in bytes."""

    code, status, title = "frame_too_large", 413, "Request too large"


class UnsupportedMediaType(RequestError):
    """The body is not JSON, or is compressed; or a WebSocket message is binary."""

    code, status, title = "unsupported_media_type", 415, "Media type not supported"


class InvalidParams(RequestError):
    """A field is missing, of the wrong type or out of range; `errors` names each."""

    code, status, title = "invalid_params", 422, "Invalid parameters"


class IdempotencyMismatch(RequestError):
    """The job id belongs to a job with another body."""

    code, status, title = "idempotency_mismatch", 422, "Job id already used"


class BusyError(JobwireError):
    """The request is correct; try again after `retry_after_ms`."""

    status = 429
    retriable = True


class RateLimited(BusyError):
    """The caller exceeds its rate of requests."""

    code, title = "rate_limited", "Too many requests"


class QueueFull(BusyError):
    """The queue is at its limit of jobs or tokens."""

    code, title = "queue_full", "Queue full"


class TooManyJobs(BusyError):
    """The caller is at its limit of live jobs."""

    code, title = "too_many_jobs", "Too many jobs"


class Draining(BusyError):
    """The worker is shutting down and accepts no new jobs."""

    code, status, title = "draining", 503, "Shutting down"


class Overloaded(BusyError):
    """The worker accepts no more connections or work now."""

    code, status, title = "overloaded", 503, "Overloaded"


class EngineError(JobwireError):
    """The engine could not carry out the request."""


class EngineFailed(EngineError):
    """The engine failed on this job, repeatedly if a repetition could have helped."""

    code, title, retriable = "engine_failed", "Engine failed", True


class ModelError(EngineError):
    """The model file is missing, broken, or of a kind that the engine cannot run."""

    code, status, title = "model_unavailable", 503, "Model not available"


class DeadlineExceeded(JobwireError):
    """The job did not end before its deadline."""

    code, status, title = "deadline_exceeded", 504, "Deadline exceeded"


class ConfigError(JobwireError):
    """A setting is wrong: the detail has its name, its value and the values allowed."""

    code, title = "config", "Wrong setting"
