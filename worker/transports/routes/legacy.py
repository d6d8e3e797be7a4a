"""Which dialect the current request speaks, and the answer for those that speak the older one.

A client whose Accept names `text/event-stream` or JSON, perhaps as `text/*` or `application/*`, speaks the modern
dialect. Any other Accept (none, the `*/*` of curl and of older clients, or these with `q=0`) and every call under
/v1/inference speak the legacy one. A stream is modern only for `text/event-stream`: one who asks for JSON gets the
legacy stream, but modern errors, which are JSON.
"""

from __future__ import annotations

from quart import Response, g, request
from werkzeug.http import parse_accept_header

from worker.dialects.legacy.deprecation import is_alias
from worker.dialects.legacy.stream import LegacyReader
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.transports.front.eventstream import legacy_events, push_of
from worker.transports.gateway import Gateway
from worker.transports.routes.answers import JSON, event_stream

EVENT_STREAM = "text/event-stream"
PROBLEM = "application/problem+json"

ACCEPT_CHARS_MAX = 4096
"""What is read of an Accept header. That of a browser has some 150 characters."""


def names_events() -> bool:
    """Return whether the client reads event streams in the modern dialect."""
    return not is_alias(request.path) and _accepted().names(EVENT_STREAM)


def prefers_events() -> bool:
    """Return whether the client wants an event stream in the modern dialect, where it could have JSON."""
    accepted = _accepted()
    return names_events() and accepted.quality(EVENT_STREAM) >= accepted.quality(JSON)


def is_legacy() -> bool:
    """Return whether errors, and all answers but streams, are in the legacy dialect."""
    accepted = _accepted()
    return is_alias(request.path) or not any(map(accepted.names, (EVENT_STREAM, JSON, PROBLEM)))


class Accepted:
    """The media ranges of an Accept header, each with its quality (RFC 9110, 12.5.1). Other parameters are ignored."""

    def __init__(self, header: str) -> None:
        self._ranges: dict[str, float] = {}
        for item, quality in parse_accept_header(header[:ACCEPT_CHARS_MAX]):
            media = item.partition(";")[0].strip().lower()
            self._ranges[media] = max(quality, self._ranges.get(media, 0.0))

    def quality(self, media: str) -> float:
        """Return how much a client likes a media type: 0 is not at all. The range that is closest to it counts."""
        return next((self._ranges[name] for name in (*_named(media), "*/*") if name in self._ranges), 0.0)

    def names(self, media: str) -> bool:
        """Return whether a client takes a media type and says so: `*/*` says nothing."""
        return self.quality(media) > 0 and not self._ranges.keys().isdisjoint(_named(media))


def _named(media: str) -> tuple[str, str]:
    """Return the ranges that name a media type, the closest first."""
    return media, f"{media.partition('/')[0]}/*"


def _accepted() -> Accepted:
    if "accepted" not in g:
        g.accepted = Accepted(",".join(request.headers.getlist("Accept")))
    return g.accepted  # type: ignore[no-any-return]  # Quart's `g` has no types


def legacy_stream(gateway: Gateway, job: Job, grant: Grant) -> Response:
    """Answer with the stream of a job in the legacy dialect."""
    info = gateway.jobs.engine.info
    reader = LegacyReader(job, info.model if info else "", gateway.narrate, info.weights_bytes if info else 0)
    return event_stream(legacy_events(gateway, job, grant, reader, push_of(request.scope)))
