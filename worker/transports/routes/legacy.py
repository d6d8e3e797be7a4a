"""Which dialect the current request speaks, and the answer for those that speak the older one.

A client that asks for `text/event-stream` or JSON speaks the modern dialect. Any other Accept (the `*/*` of curl and
of older clients) and every call under /v1/inference speak the legacy one. A stream is modern only for
`text/event-stream`: one who asks for JSON gets the legacy stream, but modern errors, which are JSON.
"""

from __future__ import annotations

import re

from quart import Response, request

from worker.dialects.legacy.deprecation import is_alias
from worker.dialects.legacy.stream import LegacyReader
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.transports.front.eventstream import legacy_events
from worker.transports.gateway import Gateway
from worker.transports.routes.answers import event_stream

EVENT_STREAM = "text/event-stream"
MODERN = re.compile(r"text/event-stream|application/(problem\+)?json")


def wants_events() -> bool:
    """Return whether the client reads event streams in the modern dialect."""
    return EVENT_STREAM in request.headers.get("Accept", "") and not is_alias(request.path)


def is_legacy() -> bool:
    """Return whether errors, and all answers but streams, are in the legacy dialect."""
    return is_alias(request.path) or not MODERN.search(request.headers.get("Accept", ""))


def legacy_stream(gateway: Gateway, job: Job, grant: Grant) -> Response:
    """Answer with the stream of a job in the legacy dialect."""
    info = gateway.jobs.engine.info
    reader = LegacyReader(job, info.model if info else "", gateway.narrate, info.weights_bytes if info else 0)
    return event_stream(legacy_events(gateway, job, grant, reader))
