"""What may hold the frames of a subscription back, where a client asks for it: a window, and `coalesce_ms`.

Nothing is stored for either: what is held back stays in the log, and the next frame is the larger for it.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Protocol

from worker.protocol.reading import Frame, LogReader

PAUSE_PARTS = 4
"""A pause ends at a multiple of this part of itself: those of many jobs end together, and share a wake-up."""


class Timer(Protocol):
    """The time, and calls when it has come."""

    def monotonic_ms(self) -> float:
        """Milliseconds that never go back."""
        ...

    def call_at(self, due_ms: int, call: Callable[[], None]) -> None:
        """Call once at this time, which lies ahead, or soon after. It cannot be undone."""
        ...


class Window:
    """At most `frames_max` frames of a job are in flight without an `ack`.

    So a client that cannot push back on its socket decides when the worker sends more. Every frame counts, the end
    too: it waits like any other, until the job is forgotten.
    """

    __slots__ = ("_acked", "_frames_max", "_unacked")

    def __init__(self, frames_max: int, after: int) -> None:
        self._frames_max = frames_max
        self._acked = after
        self._unacked: deque[int] = deque()

    @property
    def full(self) -> bool:
        """Whether the next frame must wait for an ack."""
        return len(self._unacked) >= self._frames_max

    def add(self, frame: Frame) -> None:
        """Record that a frame was sent."""
        self._unacked.append(frame.number)

    def ack(self, number: int) -> bool:
        """Make room up to this log number; return whether a frame with it was sent. A late ack changes nothing."""
        if number > self._acked and number not in self._unacked:
            return False
        while self._unacked and self._unacked[0] <= number:
            self._acked = self._unacked.popleft()
        return True

    def open(self) -> None:
        """Hold nothing back from now on. Acks are still accepted."""
        self._frames_max = sys.maxsize


class Coalescing:
    """At least `coalesce_ms` between two frames of tokens of a job.

    A job's first token is never held back, and narration and the end release held tokens at once.
    """

    __slots__ = ("_coalesce_ms", "_next_ms", "_part_ms", "_reader", "_released", "_timed", "_timer")

    def __init__(self, coalesce_ms: int, reader: LogReader, timer: Timer) -> None:
        self._coalesce_ms = coalesce_ms
        self._part_ms = max(coalesce_ms // PAUSE_PARTS, 1)
        self._reader = reader
        self._timer = timer
        # From when on tokens may be sent, and up to which log number they may be before that.
        self._next_ms = 0
        self._released = 0
        self._timed = False

    def holds_newest(self) -> bool:
        """Return whether the newest record of the log is no reason to send anything yet."""
        if not self._timed and self._timer.monotonic_ms() >= self._next_ms:
            return False
        return not self._reader.is_urgent(self._reader.job.log.tail)

    def release(self, now_ms: float) -> None:
        """Release what the log has now if the pause is over, else what comes before something urgent."""
        reader, tail = self._reader, self._reader.job.log.tail
        if now_ms >= self._next_ms:
            self._released = tail
        elif reader.after >= self._released:
            self._released = next(filter(reader.is_urgent, range(tail, reader.after, -1)), 0)

    def holds_next(self) -> bool:
        """Return whether only tokens are pending, and none that was released."""
        return self._reader.pending and self._reader.after >= self._released

    def add(self, frame: Frame, now_ms: float) -> None:
        """Begin a pause if a frame of tokens was sent."""
        if not self._reader.is_urgent(frame.number):
            self._next_ms = math.ceil((now_ms + self._coalesce_ms) / self._part_ms) * self._part_ms

    def wait(self, call: Callable[[], None]) -> None:
        """Call when the pause is over, once for each pause."""
        if not self._timed:
            self._timed = True
            self._timer.call_at(self._next_ms, call)

    def end_wait(self) -> None:
        """Record that the call has come."""
        self._timed = False
