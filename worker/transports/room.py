"""How many TCP connections there are, of whom, and which of them goes when there are too many. Pure bookkeeping.

A connection is *keyless* until a request or a frame on it has shown a valid credential; from then on it is *known*, for
as long as it lasts. The two kinds have room of their own. Everybody begins keyless, so when that room is full the one
that was quiet longest is cut, and the newcomer gets in: it may be about to show a key. Where a worker has no keys every
connection is known from its beginning, as far as there is room; the others are answered that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

GRACE_MS = 1000
"""How long a new connection is spared, so that it can send the head of its request. Among new ones the oldest goes."""

STATE_NAME = "jobwire.peer"
"""Where the state of an ASGI scope has the connection that the request came on."""


class Peer:
    """One TCP connection. `cut` ends it at once, and must not wait."""

    __slots__ = ("cut", "known", "since_ms")

    def __init__(self, cut: Callable[[], None], since_ms: float) -> None:
        self.cut = cut
        self.since_ms = since_ms
        self.known = False


class Room:
    """The connections that are open. `open_to_all`: the worker has no keys."""

    def __init__(
        self, known_max: int, keyless_max: int, monotonic_ms: Callable[[], float], *, open_to_all: bool
    ) -> None:
        self._known_max = known_max
        self._keyless_max = keyless_max
        self._monotonic_ms = monotonic_ms
        self._open_to_all = open_to_all
        self._known: set[Peer] = set()
        # The one that was quiet longest comes first.
        self._keyless: dict[Peer, None] = {}
        self.evicted = 0

    @property
    def known(self) -> int:
        """How many connections have shown a credential, or need none."""
        return len(self._known)

    @property
    def keyless(self) -> int:
        """How many connections have not shown a credential."""
        return len(self._keyless)

    def __iter__(self) -> Iterator[Peer]:
        return iter((*self._known, *self._keyless))

    def enter(self, cut: Callable[[], None]) -> Peer:
        """Take a new connection in, and cut a keyless one if it would be one too many."""
        peer = Peer(cut, self._monotonic_ms())
        if self._open_to_all and len(self._known) < self._known_max:
            self._admit(peer)
            return peer
        if len(self._keyless) >= self._keyless_max:
            self._evict(peer.since_ms)
        self._keyless[peer] = None
        return peer

    def heard(self, peer: Peer) -> None:
        """Note that bytes came on a connection."""
        if peer in self._keyless:
            del self._keyless[peer]
            self._keyless[peer] = None

    def recognise(self, peer: Peer) -> bool:
        """Note that a valid credential came on a connection; return whether there is room for it among the known."""
        if peer in self._keyless and len(self._known) < self._known_max:
            del self._keyless[peer]
            self._admit(peer)
        return peer.known

    def leave(self, peer: Peer) -> None:
        """Forget a connection that has ended."""
        self._known.discard(peer)
        self._keyless.pop(peer, None)

    def _admit(self, peer: Peer) -> None:
        peer.known = True
        self._known.add(peer)

    def _evict(self, now_ms: float) -> None:
        past_grace = (peer for peer in self._keyless if now_ms - peer.since_ms >= GRACE_MS)
        peer = next(past_grace, None) or min(self._keyless, key=lambda peer: peer.since_ms)
        del self._keyless[peer]
        self.evicted += 1
        peer.cut()


def peer_of(scope: Mapping[str, Any]) -> Peer | None:
    """Return the connection of an ASGI scope; None in a test without a socket."""
    peer: Peer | None = scope.get("state", {}).get(STATE_NAME)
    return peer
