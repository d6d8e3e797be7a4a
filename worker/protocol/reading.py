"""Reads a job's log as frames, from a cursor. Readers pull: a frame grows only while its reader is slower than the job.

A reader is a number and nothing more. Frames are encoded once per job and shared by its readers: `FrameSource` keeps,
for each job that is read now, its latest frames. They are forgotten with the job's last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import msgspec

from worker.events import Cancelled, Expired, Failed, Finished, Record, Terminal, Token
from worker.jobs.job import Job
from worker.protocol.frames import CHANNELS, Channel, End, LikelyToken, Narration, QueuePlace, State, TokenFrame, encode
from worker.protocol.tally import Tally

Narrate: TypeAlias = Callable[[str, Record], Mapping[str, Any] | None]
"""Returns the narration fields of a record of the job with this id, without `job_id` and `cursor`."""

CACHE_FRAMES_MAX = 16
CACHE_BYTES_MAX = 64 * 1024
"""Per job that is being read. Readers at the same place need few frames, those far apart share little anyway."""

TOKEN_HEAD_BYTES = 512
TEXT_BYTES_PER_CHAR = 6
NUMBER_BYTES = 26
"""Upper bounds of JSON: everything but text and lists; one escaped character; one number with its comma."""

LOGPROB_MIN = -9999.0
"""JSON has no infinity."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """An event on the wire: JSON in UTF-8, and the cursor and log number that a reader has reached with it."""

    n: int
    cursor: str
    data: bytes


class Start(msgspec.Struct, frozen=True):
    """Where a reader begins: after log number `after`; `reset` if its cursor was of a log that is gone; `over` if the
    job has ended and the reader has seen everything."""

    after: int
    reset: bool
    over: bool


def locate(job: Job, cursor: str | None) -> Start:
    """Return where a reader with this cursor begins. Without one: at the start."""
    position = job.log.position(cursor) if cursor else 0
    after = position or 0
    return Start(after, position is None, job.log.ended and after == job.log.tail)


def wire_state(job: Job) -> State:
    """Return a job's state as clients see it."""
    return "queued" if job.state == "queued" else "ended" if job.ended else "running"


def wire_queue(job: Job) -> QueuePlace | None:
    """Return where a job waits, or None if it does not."""
    return None if job.position is None else QueuePlace(job.position, job.eta_ms)


class FrameSource:
    """Makes event streams. Streams of one job share its frames."""

    def __init__(self, narrate: Narrate, tally: Tally, frame_bytes_max: int = 1 << 20) -> None:
        self._tally = tally
        self._narrate = narrate
        self._frame_bytes_max = frame_bytes_max
        self._by_job: WeakValueDictionary[Job, JobFrames] = WeakValueDictionary()

    def stream(self, job: Job, after: int = 0, channels: Iterable[Channel] = CHANNELS) -> LogReader:
        """Return a reader of `job` that begins after log number `after`. The end is on every channel."""
        frames = self._by_job.get(job)
        if frames is None:
            frames = self._by_job[job] = JobFrames(job, self._narrate, self._frame_bytes_max)
        if after:
            self._tally.resumes += 1
        return LogReader(frames, after, channels, self._tally)


class LogReader:
    """One reader of a job's log: `after` is the number of the last event that it has taken or skipped."""

    __slots__ = ("_channels", "_frames", "_records", "_tally", "after", "job")

    def __init__(self, frames: JobFrames, after: int, channels: Iterable[Channel], tally: Tally) -> None:
        self.job = frames.job
        self.after = after
        self._frames = frames
        self._records = frames.job.log.records
        self._tally = tally
        self._channels = None if CHANNELS.issubset(channels) else frozenset(channels)

    @property
    def pending(self) -> bool:
        """Whether the log has events that this reader has not taken."""
        return self.after < len(self._records)

    @property
    def done(self) -> bool:
        """Whether the job has ended and the reader has taken everything."""
        return not self.pending and self.job.log.ended

    def next(self) -> Frame | None:
        """Take the next frame, as large as the log allows now, or None if there is nothing to take yet."""
        while self.after < len(self._records):
            if self._channels is not None and not self._is_wanted(self._records[self.after]):
                self.after += 1
                continue
            frame = self._frames.after(self.after)
            tally, merged = self._tally, frame.n - self.after - 1
            tally.frames += 1
            if merged:
                tally.merged += merged
            self.after = frame.n
            return frame
        return None

    def flushes(self, index: int) -> bool:
        """Tell whether the record at this index of the log is for this reader, and more urgent than tokens."""
        record = self._records[index]
        return not isinstance(record.event, Token) and (self._channels is None or self._is_wanted(record))

    def _is_wanted(self, record: Record) -> bool:
        assert self._channels is not None
        if isinstance(record.event, Terminal):
            return True
        return ("token" if isinstance(record.event, Token) else "narration") in self._channels


class JobFrames:
    """Encodes one job's log and keeps the latest frames, by the log number they follow."""

    def __init__(self, job: Job, narrate: Narrate, frame_bytes_max: int) -> None:
        self.job = job
        self._narrate = narrate
        self._frame_bytes_max = frame_bytes_max
        self._cursor_head = f"{job.log.epoch}-"
        self._include_ids = job.request.include_ids
        # Each with the log's tail when it was encoded: a frame that ended before the tail cannot grow any more.
        self._kept: dict[int, tuple[Frame, int]] = {}
        self._kept_bytes = 0

    def after(self, after: int) -> Frame:
        """Return the frame that follows log number `after`, which must not be the tail."""
        records = self.job.log.records
        tail = len(records)
        kept = self._kept.get(after)
        if kept is not None and (kept[0].n < kept[1] or kept[1] == tail):
            return kept[0]
        event = records[after].event
        if isinstance(event, Token):
            n = self._end_of_tokens(event, after, tail) if after + 1 < tail else tail
            cursor = self._cursor_head + str(n)
            frame = Frame(n, cursor, encode(self._tokens(event, records[after:n], cursor)))
        else:
            # Only tokens grow; whatever comes later, this frame stays.
            n, tail = after + 1, tail + 1
            cursor = self._cursor_head + str(n)
            frame = Frame(n, cursor, encode(self._other(records[after], cursor)))
        if self.job.watchers != 1:
            # A lone reader shares nothing.
            self._keep(after, frame, tail)
        return frame

    def _keep(self, after: int, frame: Frame, tail: int) -> None:
        kept = self._kept
        if after in kept:
            self._kept_bytes -= len(kept.pop(after)[0].data)
        kept[after] = (frame, tail)
        self._kept_bytes += len(frame.data)
        while len(kept) > CACHE_FRAMES_MAX or self._kept_bytes > CACHE_BYTES_MAX:
            evicted, _ = kept.pop(next(iter(kept)))
            self._kept_bytes -= len(evicted.data)

    def _end_of_tokens(self, first: Token, after: int, tail: int) -> int:
        """Return the number of the last record that joins the token after `after`: same choice, same kind, and room."""
        records, end = self.job.log.records, after + 1
        room = self._frame_bytes_max - TOKEN_HEAD_BYTES - self._size(first)
        while end < tail:
            event = records[end].event
            if not isinstance(event, Token) or event.index != first.index or event.kind != first.kind:
                break
            room -= self._size(event)
            if room < 0:
                break
            end += 1
        return end

    def _size(self, token: Token) -> int:
        """Return an upper bound of the JSON bytes that a token adds to a frame."""
        size = TEXT_BYTES_PER_CHAR * len(token.text)
        if self._include_ids:
            size += NUMBER_BYTES * len(token.ids)
        if token.logprobs is not None:
            size += NUMBER_BYTES * len(token.logprobs)
        for likely in token.top_logprobs or ():
            size += sum(3 * NUMBER_BYTES + TEXT_BYTES_PER_CHAR * len(item.text) for item in likely)
        return size

    def _tokens(self, first: Token, records: list[Record], cursor: str) -> TokenFrame:
        """Return the frame of adjacent tokens, of which `first` is the first."""
        job_id, n, index, kind = self.job.id, len(records), first.index, first.kind
        plain = not self._include_ids and first.logprobs is None
        if n == 1 and plain:
            return TokenFrame(job_id=job_id, cursor=cursor, text=first.text, index=index, kind=kind)
        tokens = [record.event for record in records if isinstance(record.event, Token)]
        text = "".join([token.text for token in tokens])
        if plain:
            return TokenFrame(job_id=job_id, cursor=cursor, text=text, n=n, index=index, kind=kind)
        return TokenFrame(
            job_id=job_id,
            cursor=cursor,
            text=text,
            n=n,
            ids=tuple(id_ for token in tokens for id_ in token.ids) if self._include_ids else (),
            logprobs=tuple(max(logprob, LOGPROB_MIN) for token in tokens for logprob in token.logprobs or ()),
            top_logprobs=tuple(
                tuple(LikelyToken(item.id, item.text, max(item.logprob, LOGPROB_MIN)) for item in likely)
                for token in tokens
                for likely in token.top_logprobs or ()
            ),
            index=index,
            kind=kind,
        )

    def _other(self, record: Record, cursor: str) -> End | Narration:
        """Return the frame of a record that is not a token."""
        if isinstance(record.event, Terminal):
            return _end(self.job.id, cursor, record.event)
        fields = self._narrate(self.job.id, record)
        assert fields is not None, f"no narration for {type(record.event).__name__}"
        about = {"job_id": self.job.id, "cursor": cursor, "correlation_id": self.job.correlation.correlation_id or None}
        return msgspec.convert({"type": "narration", **about, **fields}, Narration)


def _end(job_id: str, cursor: str, event: Terminal) -> End:
    match event:
        case Finished():
            return End(
                job_id=job_id,
                cursor=cursor,
                status="completed",
                finish_reason=event.finish_reason,
                stop_sequence=event.stop_sequence,
                finish_reasons=event.finish_reasons,
                usage=event.usage,
            )
        case Cancelled():
            reason, usage = event.reason, event.usage
            return End(
                job_id=job_id, cursor=cursor, status="cancelled", finish_reason="cancelled", reason=reason, usage=usage
            )
        case Failed():
            error, usage = event.error, event.usage
            return End(job_id=job_id, cursor=cursor, status="failed", finish_reason="error", usage=usage, error=error)
        case Expired():
            error, usage = event.error, event.usage
            return End(
                job_id=job_id, cursor=cursor, status="expired", finish_reason="deadline", usage=usage, error=error
            )
