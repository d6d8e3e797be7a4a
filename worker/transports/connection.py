"""A long-lived connection, as the app and the gateway see it."""

from __future__ import annotations

from typing import Protocol

YIELD_EVERY = 64
"""After this many sends a connection that is far behind lets the others run: a send to an idle socket does not wait."""


class Connection(Protocol):
    """A long-lived connection. All methods return at once.

    `kind` is websocket, sse, legacy or loading.
    """

    kind: str

    def tick(self, now_ms: float) -> None:
        """Check the time: send a heartbeat after a silence, close when a key expired or a client reads nothing."""
        ...

    def drain(self) -> None:
        """Tell the client, if its protocol can, that the worker shuts down once its jobs have ended."""
        ...

    def finish(self) -> None:
        """Send what is pending, then close: the jobs have ended."""
        ...

    def abort(self) -> None:
        """Close without sending anything else."""
        ...
