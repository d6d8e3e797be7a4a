"""Where a job comes from: what its creator calls the whole affair, so that logs and traces of many programs meet."""

from __future__ import annotations

import msgspec


class Correlation(msgspec.Struct, frozen=True):
    """`correlation_id` is the creator's name for it, or one that was made for the request or connection.

    `traceparent` is the W3C trace context that the request carried; empty without one.
    """

    correlation_id: str = ""
    traceparent: str = ""


UNKNOWN = Correlation()
