"""The subscriptions of a connection: positions in logs, served in turn."""

from __future__ import annotations

from collections.abc import Callable

from worker.jobs.service import Jobs
from worker.protocol.pacing import Coalescing, Timer, Window
from worker.protocol.reading import Frame, LogReader


class Subscription:
    """A position in a job's log. `mark_ready` is called when it has something to send, unless it is `ready` already.

    A `window` and `coalescing` may hold its frames back.
    """

    __slots__ = ("_coalescing", "_mark_ready", "_paced", "_window", "reader", "ready")

    def __init__(
        self,
        reader: LogReader,
        mark_ready: Callable[[Subscription], None],
        window: Window | None = None,
        coalescing: Coalescing | None = None,
    ) -> None:
        self.reader = reader
        self.ready = False
        self._mark_ready = mark_ready
        self._window = window
        self._coalescing = coalescing
        # Most subscriptions have neither, and every token passes here.
        self._paced = window is not None or coalescing is not None

    def notify(self) -> None:
        """Get ready to send what was appended to the log, unless an ack or the end of a pause must come first."""
        if self._paced and not self.reader.job.log.forgotten:
            if self._window is not None and self._window.full:
                return
            if self._coalescing is not None and self._coalescing.holds_newest():
                self._coalescing.wait(self._end_wait)
                return
        if not self.ready:
            self._mark_ready(self)

    def next(self, now_ms: float) -> Frame | None:
        """Return the next frame, or None if there is none that may be sent now. It is not ready until notified."""
        self.ready = False
        if not self._paced:
            return self.reader.next()
        window, coalescing = self._window, self._coalescing
        if window is not None and window.full:
            return None
        if coalescing is not None:
            coalescing.release(now_ms)
            if coalescing.holds_next():
                coalescing.wait(self._end_wait)
                return None
        frame = self.reader.next()
        if frame is not None:
            if window is not None:
                window.add(frame)
            if coalescing is not None:
                coalescing.add(frame, now_ms)
        return frame

    def ack(self, cursor: str) -> bool:
        """Make room in the window up to this cursor; return whether a frame with it was sent here, within a window."""
        number = self.reader.job.log.position(cursor)
        if self._window is None or number is None:
            return False
        was_full = self._window.full
        known = self._window.ack(number)
        if was_full and not self._window.full:
            self._go_on()
        return known

    def release(self) -> None:
        """Let the window hold nothing back from now on. Coalescing never holds an end."""
        if self._window is not None:
            self._window.open()
            self._go_on()

    def _end_wait(self) -> None:
        assert self._coalescing is not None
        in_time = self._coalescing.end_wait()
        if self._window is not None and self._window.full:
            return
        if in_time:
            self._go_on()
        elif self.reader.pending and not self.ready:
            self._coalescing.wait(self._end_wait)

    def _go_on(self) -> None:
        """Get ready if something was held back."""
        if self.reader.pending and not self.ready:
            self._mark_ready(self)


def subscribe(
    reader: LogReader, mark_ready: Callable[[Subscription], None], window: int, coalesce_ms: int, timer: Timer
) -> Subscription:
    """Return a subscription with a window of frames, and `coalesce_ms` between token frames; 0 is none."""
    return Subscription(
        reader,
        mark_ready,
        Window(window, reader.after) if window else None,
        Coalescing(coalesce_ms, reader, timer) if coalesce_ms else None,
    )


class Subscriptions:
    """All subscriptions of one connection, by job id. `wake` is called whenever `pull` may have something new."""

    def __init__(self, jobs: Jobs, wake: Callable[[], None], timer: Timer) -> None:
        self._jobs = jobs
        self._wake = wake
        self._timer = timer
        self._by_id: dict[str, Subscription] = {}
        # See Session: a list is smaller, and there are as many as jobs that one client follows.
        self._ready: list[Subscription] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._by_id

    @property
    def ready(self) -> bool:
        """Whether a subscription has something to send."""
        return bool(self._ready)

    def follow(self, reader: LogReader, window: int, coalesce_ms: int) -> None:
        """Add a reader of a job, in place of an earlier one."""
        self.drop(reader.job.id)
        subscription = subscribe(reader, self._mark_ready, window, coalesce_ms, self._timer)
        self._by_id[reader.job.id] = subscription
        self._jobs.watch(reader.job, subscription.notify)
        if reader.pending:
            self._mark_ready(subscription)

    def drop(self, job_id: str) -> None:
        """Stop following a job, if it is followed. If it is ready it stays among the ready, and is passed over."""
        subscription = self._by_id.pop(job_id, None)
        if subscription is not None:
            self._jobs.unwatch(subscription.reader.job, subscription.notify)

    def clear(self) -> None:
        """Stop following all jobs."""
        for job_id in list(self._by_id):
            self.drop(job_id)

    def ack(self, job_id: str, cursor: str) -> bool:
        """Make room in the window of a job that is followed; return whether the cursor is one that was sent here."""
        return self._by_id[job_id].ack(cursor)

    def release(self) -> None:
        """Let windows hold nothing back from now on: the connection ends when there is nothing left to send."""
        for subscription in self._by_id.values():
            subscription.release()

    def pull(self, now_ms: float) -> bytes | None:
        """Return the next frame at monotonic time `now_ms`, or None if there is nothing to send now."""
        while self._ready:
            subscription = self._ready.pop(0)
            reader = subscription.reader
            if self._by_id.get(reader.job.id) is not subscription:
                continue
            frame = subscription.next(now_ms)
            if frame is None:
                if reader.job.log.forgotten:
                    # Its client could still make room, but might never: then it would keep the log for ever.
                    self.drop(reader.job.id)
                continue
            if reader.pending:
                self._mark_ready(subscription)
            elif reader.job.log.ended:
                self.drop(reader.job.id)
            return frame.data
        return None

    def _mark_ready(self, subscription: Subscription) -> None:
        subscription.ready = True
        self._ready.append(subscription)
        self._wake()
