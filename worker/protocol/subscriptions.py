"""The subscriptions of a connection: positions in logs, served in turn, and what may hold their frames back.

Two things may, where a client asks for them. A window: at most so many frames without an `ack` are on their way, so
that a client that cannot push back on its socket decides when to be sent more. A floor of `coalesce_ms` between token
frames. Nothing is stored for either: what is held back stays in the log, and the next frame is the larger for it.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Protocol

from worker.jobs.service import Jobs
from worker.protocol.reading import Frame, LogReader

FLOOR_PARTS = 4
"""A floor ends at a multiple of this part of itself: those of many jobs end together, and share a wake-up."""


class Timer(Protocol):
    """The time, and what is to happen then."""

    def monotonic_ms(self) -> float:
        """Milliseconds that never go back."""
        ...

    def call_at(self, due_ms: int, call: Callable[[], None]) -> None:
        """Call once at this time, which lies ahead, or soon after. It cannot be undone."""
        ...


class Subscription:
    """A position in a job's log, and whether it stands in the line of those that have something to send."""

    __slots__ = ("_enqueue", "queued", "stream")

    def __init__(self, stream: LogReader, enqueue: Callable[[Subscription], None]) -> None:
        self.stream = stream
        self.queued = False
        self._enqueue = enqueue

    def notify(self) -> None:
        """The log has grown: stand in the line."""
        if not self.queued:
            self._enqueue(self)

    def take(self, now_ms: float) -> Frame | None:  # noqa: ARG002 - nothing holds it back
        """Leave the line and take the next frame, or None if there is none that may be sent now."""
        self.queued = False
        return self.stream.next()

    def ack(self, cursor: str) -> bool:  # noqa: ARG002 - there is no window
        """Make room up to this cursor; tell whether it is one that was sent here. Without a window none counts."""
        return False

    def release(self) -> None:
        """Let a window hold nothing back any more."""


class PacedSubscription(Subscription):
    """A subscription with a window of frames, a floor of ms between token frames, or both; 0 is none.

    Every frame takes a place in the window, the end too: it waits like any other, until the job is forgotten. A job's
    first token is never held back by the floor, and narration and the end let go what was.
    """

    __slots__ = (
        "_acked", "_coalesce_ms", "_flushed", "_full", "_next_ms", "_part_ms", "_timed", "_timer",
        "_unacked", "_window",
    )  # fmt: skip

    def __init__(
        self, stream: LogReader, enqueue: Callable[[Subscription], None], window: int, coalesce_ms: int, timer: Timer
    ) -> None:
        super().__init__(stream, enqueue)
        self._window = window
        self._acked = stream.after
        self._unacked: deque[int] = deque()
        self._full = False
        self._coalesce_ms = coalesce_ms
        self._part_ms = max(coalesce_ms // FLOOR_PARTS, 1)
        self._timer = timer
        # From when on tokens may be sent, and up to which log number they may before that.
        self._next_ms = 0
        self._flushed = 0
        self._timed = False

    def notify(self) -> None:
        """The log has grown: stand in the line, unless that is for an ack or for time to say."""
        log = self.stream.job.log
        if log.forgotten or not (self._full or self._is_early()):
            super().notify()

    def take(self, now_ms: float) -> Frame | None:
        """Take the next frame, if the window has room and the pause is over."""
        self.queued = False
        if self._window and len(self._unacked) >= self._window:
            self._full = True
            return None
        if now_ms >= self._next_ms:
            self._flushed = self.stream.job.log.tail
        elif self._must_pause():
            return None
        frame = self.stream.next()
        if frame is not None:
            if self._window:
                self._unacked.append(frame.n)
            if self._coalesce_ms and not self.stream.flushes(frame.n - 1):
                self._next_ms = math.ceil((now_ms + self._coalesce_ms) / self._part_ms) * self._part_ms
        return frame

    def ack(self, cursor: str) -> bool:
        """Make room up to this cursor; tell whether it is one that was sent here. One that came earlier is ignored."""
        n = self.stream.job.log.position(cursor)
        if not self._window or n is None or not (n <= self._acked or n in self._unacked):
            return False
        while self._unacked and self._unacked[0] <= n:
            self._acked = self._unacked.popleft()
        if self._full and len(self._unacked) < self._window:
            self._full = False
            super().notify()
        return True

    def release(self) -> None:
        """Let the window hold nothing back any more. Acks are still taken, and a floor never holds an end."""
        if self._window:
            self._window = sys.maxsize
        if self._full:
            self._full = False
            super().notify()

    def _is_early(self) -> bool:
        """Tell whether the log grew too soon, and by nothing that is urgent. Time lets it go then."""
        if not self._timed and self._timer.monotonic_ms() >= self._next_ms:
            return False
        if self.stream.flushes(self.stream.job.log.tail - 1):
            return False
        self._wait()
        return True

    def _must_pause(self) -> bool:
        """Tell whether only tokens are pending, although it is too soon. Time lets them go then."""
        stream, tail = self.stream, self.stream.job.log.tail
        if stream.after >= self._flushed:
            urgent = filter(stream.flushes, range(tail - 1, stream.after - 1, -1))
            self._flushed = next(urgent, -1) + 1
        if stream.after < self._flushed or not stream.pending:
            return False
        self._wait()
        return True

    def _wait(self) -> None:
        if not self._timed:
            self._timed = True
            self._timer.call_at(self._next_ms, self._let_go)

    def _let_go(self) -> None:
        self._timed = False
        if self.stream.pending and not self._full:
            super().notify()


def subscribe(
    stream: LogReader, enqueue: Callable[[Subscription], None], window: int, coalesce_ms: int, timer: Timer
) -> Subscription:
    """Return a subscription that calls `enqueue` when it has something to send."""
    if window or coalesce_ms:
        return PacedSubscription(stream, enqueue, window, coalesce_ms, timer)
    return Subscription(stream, enqueue)


class Subscriptions:
    """All subscriptions of one connection, by job id. `wake` is called whenever `pull` may have something new."""

    def __init__(self, jobs: Jobs, wake: Callable[[], None], timer: Timer) -> None:
        self._jobs = jobs
        self._wake = wake
        self._timer = timer
        self._by_id: dict[str, Subscription] = {}
        self._ready: deque[Subscription] = deque()

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._by_id

    @property
    def ready(self) -> bool:
        """Whether one stands in the line."""
        return bool(self._ready)

    def follow(self, stream: LogReader, window: int, coalesce_ms: int) -> None:
        """Add a reader of a job, in place of an earlier one."""
        self.drop(stream.job.id)
        subscription = subscribe(stream, self._enqueue, window, coalesce_ms, self._timer)
        self._by_id[stream.job.id] = subscription
        self._jobs.watch(stream.job, subscription.notify)
        if stream.pending:
            self._enqueue(subscription)

    def drop(self, job_id: str) -> None:
        """Stop following a job, if it is followed. It may still stand in the line: then it is passed over."""
        subscription = self._by_id.pop(job_id, None)
        if subscription is not None:
            self._jobs.unwatch(subscription.stream.job, subscription.notify)

    def clear(self) -> None:
        """Stop following all jobs."""
        for job_id in list(self._by_id):
            self.drop(job_id)

    def ack(self, job_id: str, cursor: str) -> bool:
        """Make room in the window of a job that is followed; tell whether the cursor is one that was sent here."""
        return self._by_id[job_id].ack(cursor)

    def release(self) -> None:
        """Let windows hold nothing back any more: the connection ends when there is nothing left to send."""
        for subscription in self._by_id.values():
            subscription.release()

    def pull(self, now_ms: float) -> bytes | None:
        """Take the next frame at monotonic time `now_ms`, or None if there is nothing to send now."""
        while self._ready:
            subscription = self._ready.popleft()
            stream = subscription.stream
            if self._by_id.get(stream.job.id) is not subscription:
                continue
            frame = subscription.take(now_ms)
            if frame is None:
                if stream.job.log.forgotten:
                    # Its client could still make room, but might never: then it would keep the log for ever.
                    self.drop(stream.job.id)
                continue
            if stream.pending:
                self._enqueue(subscription)
            elif stream.job.log.ended:
                self.drop(stream.job.id)
            return frame.data
        return None

    def _enqueue(self, subscription: Subscription) -> None:
        subscription.queued = True
        self._ready.append(subscription)
        self._wake()
