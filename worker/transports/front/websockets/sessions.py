"""What a WebSocket carries: the port between a connection and the dialect that is spoken on it.

A table maps paths to session types. A type brings its subprotocols, refusals and close codes with it; connections know
those of RFC 6455 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from worker.jobs.correlation import Correlation
from worker.protocol.closing import CloseConnection
from worker.transports.room import Peer


@dataclass(frozen=True, slots=True)
class Opening:
    """The opening handshake of a client: its headers, by name in lower case, and the subprotocols that it offers.

    `path` is the one in the table, `prefix` what comes before it, the path of a proxy. It came on the connection
    `peer`.
    """

    path: str
    prefix: str
    peer: Peer
    headers: Mapping[str, str]
    offered: tuple[str, ...]
    correlation: Correlation


class Session(Protocol):
    """The worker's side of one conversation. Nothing in it waits."""

    def receive(self, data: str | bytes, now_ms: float) -> None:
        """Act on one message. Raises CloseConnection."""
        ...

    def pull(self, now_ms: float) -> bytes | None:
        """Return the next text message to send, or None if there is none now."""
        ...

    def tick(self, now_ms: float, silent_ms: float) -> None:
        """Check the time, about once a second. Nothing was sent for `silent_ms`. Raises CloseConnection."""
        ...

    def drain(self) -> None:
        """Tell the client, if the dialect can, that the worker shuts down once its jobs have ended."""
        ...

    def finish(self) -> None:
        """Hold nothing back any longer: the connection is closed when there is nothing left to send."""
        ...

    def close(self) -> None:
        """Let go of everything. The session is not used afterwards."""
        ...


class SessionType(Protocol):
    """One dialect. `stalled` and `finished` close a client that does not read, and one that was sent everything."""

    stalled: CloseConnection
    finished: CloseConnection

    def choose(self, offered: tuple[str, ...]) -> str | None:
        """Return the one of the offered subprotocols that is spoken from now on, if any."""
        ...

    def open(self, opening: Opening, wake: Callable[[], None]) -> Session:
        """Return a session for a client; `wake` is called whenever `pull` may have something new.

        Raises CloseConnection to refuse it: a page sees why only after the handshake (a refused one is 1006).
        """
        ...


Table: TypeAlias = Mapping[str, SessionType]
