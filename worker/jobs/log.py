"""A job's ordered log: numbered records, and cursors that survive everything but the log itself.

Plain data without lock, loop or clock: the service writes, readers keep a number and read on from there. A cursor on
the wire is `<epoch>-<n>`: the epoch is random for each incarnation of a log, so a cursor of a lost log is recognised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec

from worker.events import TERMINAL, Event, Record, Resumed, Token

RECORD_BYTES = 112
"""Rough memory of a record besides its event, for retention by bytes."""

TOKEN_BYTES = 144
"""Rough memory of a token's event besides its text and ids."""

ID_BYTES = 48
"""Rough memory of a token's id: the number, and its places in the event and among the ids of its choice."""

LOGPROB_BYTES = 144
"""Rough memory of a token's log-probability, and of the list of its likeliest tokens."""

LIKELY_BYTES = 180
"""Rough memory of each entry of a record's `top_logprobs`."""


class JobLog:
    """The log of one job. `attempt` counts the engines that had the job; a `Resumed` record opens the next.

    `ended`: its last record is terminal. `forgotten`: its retention is over, and only its present readers can still
    read it. `bytes` is about its memory; where its events are `shared`, the same in many logs, they do not count.
    """

    __slots__ = ("_shared", "_wakers", "attempt", "bytes", "ended", "epoch", "forgotten", "records")

    def __init__(self, epoch: str, *, shared: bool = False) -> None:
        self.epoch = epoch
        self._shared = shared
        self.attempt = 1
        self.records: list[Record] = []
        self.bytes = 0
        self.ended = False
        self.forgotten = False
        self._wakers: list[Callable[[], None]] = []

    @property
    def tail(self) -> int:
        """Number of the last record; 0 when empty."""
        return len(self.records)

    def append(self, event: Event, at_ms: int) -> Record:
        """Append an event other than a token, and wake the readers. Nothing follows a terminal event."""
        assert not self.ended, f"{type(event).__name__} after the end"
        record = Record(len(self.records) + 1, at_ms, event)
        self.records.append(record)
        self.bytes += RECORD_BYTES if self._shared else RECORD_BYTES + _size_of(event)
        if isinstance(event, Resumed):
            self.attempt += 1
        else:
            self.ended = isinstance(event, TERMINAL)
        self.wake()
        return record

    def append_token(self, token: Token, at_ms: int) -> Record:
        """Append a token, as nearly all events are. The writer wakes the readers, once for a whole step."""
        assert not self.ended, "a token after the end"
        records = self.records
        record = Record(len(records) + 1, at_ms, token)
        records.append(record)
        self.bytes += RECORD_BYTES if self._shared else RECORD_BYTES + _size_of_token(token)
        return record

    def forget(self) -> None:
        """Mark the log as forgotten, and wake the readers: one that waits for its client alone need not stay."""
        self.forgotten = True
        self.wake()

    def read(self, after: int, limit: int | None = None) -> list[Record]:
        """Return the records after number `after`, oldest first, at most `limit`."""
        return self.records[after : None if limit is None else after + limit]

    def cursor(self, n: int) -> str:
        """Return the wire form of a position."""
        return f"{self.epoch}-{n}"

    def position(self, cursor: str) -> int | None:
        """Return the number in a cursor, or None (replay from the start) if it is of another log or past this one."""
        epoch, _, number = cursor.rpartition("-")
        if epoch != self.epoch or not (number.isascii() and number.isdigit()) or len(number) > 12:
            return None
        return int(number) if int(number) <= self.tail else None

    def add_waker(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever the log has grown and when it is forgotten, until removed."""
        self._wakers.append(wake)

    def remove_waker(self, wake: Callable[[], None]) -> None:
        """Undo add_waker; removing twice is harmless."""
        if wake in self._wakers:
            self._wakers.remove(wake)

    def wake(self) -> None:
        """Let the readers know that the log has grown, by one record or many."""
        for wake in tuple(self._wakers):
            wake()


def _size_of_token(token: Token) -> int:
    """Return about the memory of a token."""
    size = TOKEN_BYTES + sys.getsizeof(token.text) + ID_BYTES * len(token.ids)
    if token.logprobs is not None:
        size += LOGPROB_BYTES * len(token.logprobs)
    if token.top_logprobs is not None:
        size += LIKELY_BYTES * sum(map(len, token.top_logprobs))
    return size


def _size_of(value: object) -> int:
    """Return about the memory of an event that is no token, or of what is in one."""
    match value:
        case msgspec.Struct():
            return sys.getsizeof(value) + sum(_size_of(getattr(value, name)) for name in value.__struct_fields__)
        case tuple():
            return sys.getsizeof(value) + sum(map(_size_of, value))
        case str() | bytes():
            return sys.getsizeof(value)
        case _:
            return 0
