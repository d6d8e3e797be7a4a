"""The errors of the older worker: its status codes, its codes, and the keys that its clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from worker.errors import FieldError, JobwireError, Unauthorized

ERROR_CODES = {
    "unauthorized": "INVALID_API_KEY",
    "forbidden": "FORBIDDEN",
    "job_not_found": "JOB_NOT_FOUND",
    "job_lost": "JOB_NOT_FOUND",
    "gone": "GONE",
    "rate_limited": "INSUFFICIENT_RESOURCES",
    "queue_full": "INSUFFICIENT_RESOURCES",
    "too_many_jobs": "INSUFFICIENT_RESOURCES",
    "draining": "WORKER_UNHEALTHY",
    "overloaded": "INSUFFICIENT_RESOURCES",
    "model_unavailable": "WORKER_UNHEALTHY",
    "deadline_exceeded": "INFERENCE_TIMEOUT",
    "engine_failed": "INTERNAL",
    "internal": "INTERNAL",
}
ERROR_CODE_OTHER = "INVALID_REQUEST"

STATUSES = {"invalid_params": 400}
"""Where the old status differs."""


def status(error: JobwireError) -> int:
    """Return the HTTP status of an error in this dialect."""
    return STATUSES.get(error.code, error.status)


def problem(error: JobwireError, body: Mapping[str, object] | None = None, *, has_key: bool = True) -> dict[str, Any]:
    """Return the problem object with the keys that old clients read. `body` is the request, to quote wrong values from;
    `has_key` says whether an API key was sent, right or wrong."""
    code = ERROR_CODES.get(error.code, ERROR_CODE_OTHER)
    if isinstance(error, Unauthorized) and not has_key:
        code = "MISSING_API_KEY"
    fields: dict[str, Any] = msgspec.to_builtins(error.problem())
    fields |= {"status": status(error), "code": code, "message": error.detail}
    fields["error"] = {"code": code, "message": error.detail}
    if error.errors:
        fields["errors"] = [_field_error(item, body or {}) for item in error.errors]
    return fields


def _field_error(error: FieldError, body: Mapping[str, object]) -> dict[str, object]:
    field = error.pointer.removeprefix("/").replace("/", ".")
    fields: dict[str, object] = {
        "field": field,
        "constraint": error.detail,
        "message": f"{field}: {error.detail}",
        "pointer": error.pointer,
        "detail": error.detail,
    }
    value = body.get(field)
    if isinstance(value, int | float | str) and error.pointer != "/prompt":
        fields["value"] = str(value)[:80]
    return fields
