"""A long-lived connection, as the app and the gateway see it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

YIELD_EVERY = 64
"""After this many sends a connection that is far behind lets the others run: a send to an idle socket does not wait."""

ROUND_PARTS, PART_MIN = 10, 64
"""All connections are checked in about this many parts, none smaller than that."""


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


class Rounds:
    """Goes round all connections, a part at a time: checking many at once would hold the others up."""

    def __init__(self, connections: Collection[Connection]) -> None:
        self._connections = connections
        self._left: list[Connection] = []
        self._part = 0

    def next(self) -> list[Connection]:
        """Return the next part of the round, without those that have closed; begin another one when it is over."""
        if not self._left:
            self._left = list(self._connections)
            self._part = max(len(self._left) // ROUND_PARTS, PART_MIN)
        part, self._left = self._left[: self._part], self._left[self._part :]
        return [connection for connection in part if connection in self._connections]
