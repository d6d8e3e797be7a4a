"""Ids of a job's creator, by which its logs and traces can be joined with those of other programs."""

from __future__ import annotations

import msgspec


class Correlation(msgspec.Struct, frozen=True):
    """`correlation_id` is the creator's own, or one that was made for the request or connection.

    `traceparent` is the W3C trace context that the request carried; empty without one.
    """

    correlation_id: str = ""
    traceparent: str = ""


UNKNOWN = Correlation()
"""That of a job whose creator gave no ids."""
