"""A long-lived connection, as the app and the gateway see it."""

from __future__ import annotations

from typing import Protocol

YIELD_EVERY = 64
"""A reader that is far behind lets the others run after so many sends: a send to an idle socket does not wait."""


class Connection(Protocol):
    """A long-lived connection, as the app sees it. All methods return at once.

    `kind` is websocket, sse, legacy or loading.
    """

    kind: str

    def tick(self, now_ms: float) -> None:
        """Time passes: say something if nothing was said for long, give up if nothing could be sent for long."""
        ...

    def drain(self) -> None:
        """Tell the client, if it can be told, that the worker shuts down once its jobs have ended."""
        ...

    def finish(self) -> None:
        """Send what is there, then close: the jobs have ended."""
        ...

    def abort(self) -> None:
        """Close without sending anything more."""
        ...
