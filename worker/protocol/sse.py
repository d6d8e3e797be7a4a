"""Frames as server-sent events: unnamed, the cursor as `id`, so that an EventSource resumes by itself."""

from __future__ import annotations

from worker.jobs.job import Job
from worker.protocol.eventstream import Frame, Start, locate

RETRY = b"retry: 1000\n\n"
RESET = b'data: {"type":"accepted","reset":true}\n\n'
HEARTBEAT = b": hb\n\n"


def start(job: Job, last_event_id: str | None, after: str | None) -> Start:
    """Return where a reader begins; `Last-Event-ID` wins over `?after=`. One that is `over` is answered with 204."""
    return locate(job, last_event_id or after)


def prologue(*, reset: bool) -> bytes:
    """Return what a stream begins with: how soon to reconnect, and whether the job is told again from its start."""
    return RETRY + RESET if reset else RETRY


def encode(frame: Frame) -> bytes:
    """Return a frame as one event. JSON has no raw line breaks, so one `data` line holds it."""
    return b"id: %b\ndata: %b\n\n" % (frame.cursor.encode(), frame.data)
