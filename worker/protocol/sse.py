"""Frames as server-sent events: unnamed, the cursor as `id`, so that an EventSource resumes by itself."""

from __future__ import annotations

from collections.abc import Callable

from worker.errors import FieldError
from worker.jobs.job import Job
from worker.operations.base import Limits
from worker.protocol.decoding import invalid
from worker.protocol.frames import Create
from worker.protocol.reading import Frame, LogReader, Start, locate
from worker.protocol.subscriptions import Timer, subscribe

RETRY = b"retry: 1000\n\n"
RESET = b'data: {"type":"accepted","reset":true}\n\n'
HEARTBEAT = b": hb\n\n"


def start(job: Job, last_event_id: str | None, after: str | None) -> Start:
    """Return where a reader begins; `Last-Event-ID` wins over `?after=`. One that is `over` is answered with 204."""
    return locate(job, last_event_id or after)


def check(frame: Create) -> None:
    """Refuse a window: an event stream cannot be acknowledged, and a client would rely on it. Raises InvalidParams.

    Programs need none, since TCP holds back whatever they do not read; pages may ask for `coalesce_ms`.
    """
    if frame.window:
        raise invalid(FieldError("/window", "Expected no `window`: only a WebSocket has one"))


def coalesce_ms(text: str | None, limits: Limits) -> int:
    """Return the `coalesce_ms` in a query, 0 if there is none. Raises InvalidParams."""
    most = limits.coalesce_ms_max
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise invalid(FieldError("/coalesce_ms", f"Expected an integer from 0 to {most}"))
    return int(text)


def prologue(*, reset: bool) -> bytes:
    """Return what a stream begins with: how soon to reconnect, and whether the job is told again from its start."""
    return RETRY + RESET if reset else RETRY


class SseStream:
    """One reader of a job in the modern dialect. `wake` is called whenever `next` may have something new."""

    def __init__(self, stream: LogReader, coalesce_ms: int, wake: Callable[[], None], timer: Timer) -> None:
        self._stream = stream
        self._subscription = subscribe(stream, lambda _: wake(), 0, coalesce_ms, timer)
        self.notify = self._subscription.notify

    @property
    def done(self) -> bool:
        """Whether the job has ended and everything was taken."""
        return self._stream.done

    def next(self, now_ms: float) -> bytes | None:
        """Take the next event at monotonic time `now_ms`, or None if there is nothing to send now."""
        frame = self._subscription.take(now_ms)
        return None if frame is None else encode(frame)


def encode(frame: Frame) -> bytes:
    """Return a frame as one event. JSON has no raw line breaks, so one `data` line holds it."""
    return b"id: %b\ndata: %b\n\n" % (frame.cursor.encode(), frame.data)
