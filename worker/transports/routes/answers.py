"""Answers of all routes: JSON, event streams, and the grant that a caller needs for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from quart import Response, request

from worker.jobs.limits.principals import Grant
from worker.transports.gateway import Gateway
from worker.transports.room import peer_of

JSON = "application/json"

EVENT_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def grant_of_request(gateway: Gateway) -> Grant:
    """Return the grant of the current request. Raises Unauthorized, Forbidden and Overloaded."""
    grant = gateway.access.require(request.headers)
    gateway.admit(peer_of(request.scope))
    return grant


def json_answer(body: bytes, status: int = 200) -> Response:
    """Answer with JSON that the protocol has encoded."""
    return Response(body, status, content_type=JSON)


def event_stream(events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a stream of events, and more headers."""
    response = Response(events, headers=EVENT_STREAM_HEADERS | dict(headers or {}))
    # Quart ends a response after 60 s otherwise, silently.
    response.timeout = None
    return response
