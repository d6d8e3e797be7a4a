"""Reads from a request's headers the ids that connect it with the logs and traces of other programs."""

from __future__ import annotations

import re
import uuid
from typing import Protocol

from worker.jobs.correlation import Correlation

CORRELATION_HEADERS = ("x-correlation-id", "x-request-id")
ANSWER_HEADER = "X-Correlation-ID"

SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""An accepted id ends up in logs, frames and headers: nothing in it may have a meaning there."""

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-\S{0,200})?")
"""https://www.w3.org/TR/trace-context/#traceparent-header, version 00 and later ones."""


class Headers(Protocol):
    """The headers of a request, by name in lower case."""

    def get(self, key: str, /) -> str | None:
        """Return a header, or None."""
        ...


def correlation_of(headers: Headers) -> Correlation:
    """Return the correlation of a request. An id that is missing or malformed is replaced by a new one."""
    given = (headers.get(name) for name in CORRELATION_HEADERS)
    correlation_id = next((value for value in given if value and SANE_ID.fullmatch(value)), None)
    traceparent = headers.get("traceparent") or ""
    return Correlation(correlation_id or uuid.uuid4().hex, traceparent if TRACEPARENT.fullmatch(traceparent) else "")
