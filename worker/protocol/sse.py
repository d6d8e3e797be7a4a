"""Frames as server-sent events: unnamed, the cursor as `id`, so that an EventSource resumes by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote

import msgspec

from worker.errors import FieldError
from worker.jobs.job import Job
from worker.operations.base import Limits
from worker.operations.fields import integers
from worker.protocol import frames
from worker.protocol.decoding import invalid
from worker.protocol.pacing import Timer
from worker.protocol.reading import Frame, LogReader, Start, locate
from worker.protocol.subscriptions import subscribe

RETRY = b"retry: 1000\n\n"
RESET = b'data: {"type":"accepted","reset":true}\n\n'
HEARTBEAT = b": hb\n\n"

IGNORED_HEADER = "X-Jobwire-Ignored"
"""Names the fields of a POST that the worker does not know, where the answer is a stream."""


def start(job: Job, last_event_id: str | None, after: str | None) -> Start:
    """Return where a reader begins; `Last-Event-ID` wins over `?after=`. One that has `ended` is answered with 204."""
    return locate(job, last_event_id or after)


def coalesce_ms(text: str | None, limits: Limits) -> int:
    """Return the `coalesce_ms` in a query, 0 if there is none. Raises InvalidParams."""
    most = limits.coalesce_ms_max
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= most):
        raise invalid(FieldError("/coalesce_ms", integers(0, most)))
    return int(text)


def prologue(*, reset: bool) -> bytes:
    """Return what a stream begins with: how soon to reconnect, and whether the job is replayed from its start."""
    return RETRY + RESET if reset else RETRY


def ignored_header(ignored: Sequence[str]) -> dict[str, str]:
    """Return the header that names ignored fields, if there are any: percent-encoded, with commas between them."""
    names = ",".join(quote(name, safe="", errors="replace") for name in ignored)
    return {IGNORED_HEADER: names} if names else {}


class SseReader:
    """One reader of a job in the modern dialect. `wake` is called whenever `next` may have something new.

    The first narration that it reads names the `ignored` fields of the request, in a copy: frames are shared.
    """

    def __init__(
        self,
        reader: LogReader,
        coalesce_ms: int,
        wake: Callable[[], None],
        timer: Timer,
        ignored: Sequence[str] = (),
    ) -> None:
        self._reader = reader
        self._ignored = frames.encode({"ignored": list(ignored)})[1:-1] if ignored else b""
        self._subscription = subscribe(reader, lambda _: wake(), 0, coalesce_ms, timer)
        self.notify = self._subscription.notify

    @property
    def ended(self) -> bool:
        """Whether the job has ended and all of it was read."""
        return self._reader.ended

    def next(self, now_ms: float) -> bytes | None:
        """Return the next event at monotonic time `now_ms`, or None if there is nothing to send now."""
        frame = self._subscription.next(now_ms)
        if frame is None:
            return None
        if self._ignored and frame.data.startswith(NARRATION_HEAD):
            data = b"%b,%b}" % (frame.data[:-1], self._ignored)
            frame, self._ignored = msgspec.structs.replace(frame, data=data), b""
        return encode(frame)


NARRATION_HEAD = b'{"type":"narration",'


def encode(frame: Frame) -> bytes:
    """Return a frame as one event. JSON has no raw line breaks, so one `data` line holds it."""
    return b"id: %b\ndata: %b\n\n" % (frame.cursor.encode(), frame.data)
