"""Headers of the CORS protocol (Fetch standard), which let pages of listed origins read the answers. Pure."""

from __future__ import annotations

PREFLIGHT_MAX_AGE_S = 600

PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Correlation-ID, "
    "X-Request-ID, traceparent",
    "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
}
"""What a page may send: the answer to a preflight, besides the headers of `allow`."""

EXPOSED = (
    "Deprecation, Link, RateLimit, RateLimit-Policy, Retry-After, Sunset, WWW-Authenticate, X-Correlation-ID, "
    "X-Jobwire-Ignored"
)
"""Headers of an answer that a page may read."""


def allow(origin: str, *, credentials: bool) -> dict[str, str]:
    """Return the headers that let pages of `origin` read an answer. `credentials`: a cookie may authenticate them."""
    fields = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED}
    return fields | {"Access-Control-Allow-Credentials": "true"} if credentials else fields
