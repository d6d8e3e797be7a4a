"""What may hold the frames of a subscription back, where a client asks for it: a window, and `coalesce_ms`.

Nothing is stored for either: what is held back stays in the log, and the next frame is the larger for it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Protocol

from worker.protocol.reading import Frame, LogReader


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

    A pause ends with the first token after it, so that nobody is woken for what is already there. If none comes, a beat
    ends it, which all pauses of one length share: half a pause to one and a half later. A job's first token is never
    held back, and narration and the end release held tokens at once.
    """

    __slots__ = ("_beat_ms", "_coalesce_ms", "_due_ms", "_next_ms", "_reader", "_released", "_timer")

    def __init__(self, coalesce_ms: int, reader: LogReader, timer: Timer) -> None:
        self._coalesce_ms = coalesce_ms
        self._reader = reader
        self._timer = timer
        # From when on tokens may be sent, the beat after that, and up to which log number they may be sent before.
        self._next_ms = 0.0
        self._beat_ms = 0
        self._released = 0
        # The beat that is waited for, None if there is none.
        self._due_ms: int | None = None

    def holds_newest(self) -> bool:
        """Return whether the newest record of the log is no reason to send anything yet."""
        job = self._reader.job
        last_ms = job.timing.last_token
        if last_ms is None or last_ms >= self._next_ms:
            return False
        return not self._reader.is_urgent(job.log.tail)

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
            pause_ms = self._coalesce_ms
            self._next_ms = now_ms + pause_ms
            self._beat_ms = (int(self._next_ms + pause_ms / 2) // pause_ms + 1) * pause_ms

    def wait(self, call: Callable[[], None]) -> None:
        """Call at the beat after the pause, unless a call is waited for already."""
        if self._due_ms is None:
            self._due_ms = self._beat_ms
            self._timer.call_at(self._beat_ms, call)

    def end_wait(self) -> bool:
        """Record that the call has come; return whether it is that of this pause, and not of an earlier one."""
        due_ms, self._due_ms = self._due_ms, None
        return due_ms == self._beat_ms
