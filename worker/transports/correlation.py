"""What a request says about where it comes from, in headers that many programs know."""

from __future__ import annotations

import re
import uuid

from worker.jobs.correlation import Correlation
from worker.transports.access.credentials import Headers

CORRELATION_HEADERS = ("x-correlation-id", "x-request-id")
ANSWER_HEADER = "X-Correlation-ID"

# What is taken ends up in logs, frames and headers: nothing in it may have a meaning there.
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header, of version 00 and those to come.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-\S{0,200})?")


def correlation_of(headers: Headers) -> Correlation:
    """Return where a request comes from. An id that is missing or strange is replaced by one of our own."""
    given = (headers.get(name) for name in CORRELATION_HEADERS)
    correlation_id = next((value for value in given if value and SANE_ID.fullmatch(value)), None)
    traceparent = headers.get("traceparent") or ""
    return Correlation(correlation_id or uuid.uuid4().hex, traceparent if TRACEPARENT.fullmatch(traceparent) else "")
