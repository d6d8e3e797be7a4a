"""Answers of all routes: JSON, event streams, and the grant that a caller needs for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping

from quart import Response, g, request

from worker.jobs.limits.principals import Grant
from worker.jobs.limits.quota import Rate
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
    # Where there is none, only `require` can say why.
    grant: Grant = g.grant or gateway.access.require(request.headers)
    gateway.admit(peer_of(request.scope))
    return grant


def is_known() -> bool:
    """Return whether the current request shows who calls. Without keys everybody is known."""
    return g.grant is not None


def json_answer(body: bytes, status: int = 200) -> Response:
    """Answer with JSON that the protocol has encoded."""
    return Response(body, status, content_type=JSON)


def event_stream(events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a stream of events, and more headers. The body of the request may be large: it does not stay."""
    g.pop("body", None)
    # A HEAD asks for the headers alone: its answer would last as long as the stream, and carry nothing.
    content = events if request.method != "HEAD" else _no_events()
    response = Response(content, headers=EVENT_STREAM_HEADERS | dict(headers or {}))
    # Quart ends a response after 60 s otherwise, silently.
    response.timeout = None
    return response


async def _no_events() -> AsyncIterator[bytes]:
    return
    yield b""


def rate_limit_headers(rates: Iterable[Rate]) -> dict[str, str]:
    """Return the headers that tell limits per minute and what is left of them, if there are any.

    The fields are those of draft-ietf-httpapi-ratelimit-headers-10. `t` is when all of a limit is there again.
    """
    rates = tuple(rates)
    if not rates:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{rate.unit}";q={rate.limit};w=60' for rate in rates),
        "RateLimit": ", ".join(f'"{rate.unit}";r={rate.left};t={-(-rate.full_ms // 1000)}' for rate in rates),
    }
