"""A job's log as frames, from a cursor. Readers pull: a frame grows only while its reader is slower than the job.

A reader is a position in the log and nothing more. Frames are encoded once per job and shared by its readers:
`FrameSource` keeps the latest frames of each job that is read now. They are forgotten with the job's last reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec

from worker.events import Cancelled, Failed, Finished, Record, Terminal, Token
from worker.jobs.job import Job
from worker.jobs.narration import EMITTED_BY, Narrate
from worker.protocol.frames import (
    CHANNELS,
    Channel,
    End,
    LikelyToken,
    NarrationFrame,
    QueuePlace,
    State,
    TokenFrame,
    encode,
)
from worker.protocol.tally import Tally

CACHE_FRAMES_MAX = 16
"""Per job that is being read. Readers at the same place need few frames, those far apart share little anyway."""

CACHE_BYTES_MAX = 64 * 1024
"""Likewise, for large frames."""

TOKEN_HEAD_BYTES = 512
"""Upper bound of the JSON of a token frame without its text and its lists."""

TEXT_BYTES_PER_CHAR = 6
"""Upper bound of the JSON of one character, escaped."""

NUMBER_BYTES = 26
"""Upper bound of the JSON of one number, with its comma."""

LOGPROB_MIN = -9999.0
"""JSON has no infinity."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """An event on the wire: JSON in UTF-8, and the cursor and log number that a reader has reached with it."""

    number: int
    cursor: str
    data: bytes


class Start(msgspec.Struct, frozen=True):
    """Where a reader begins: after log number `after`. `reset`: its cursor was of a log that is gone. `ended`: the job
    has ended, and the reader has seen all of it."""

    after: int
    reset: bool
    ended: bool


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
    """Makes readers of jobs. Readers of one job share its frames."""

    def __init__(self, narrate: Narrate, tally: Tally, frame_bytes_max: int = 1 << 20) -> None:
        self._tally = tally
        self._narrate = narrate
        self._frame_bytes_max = frame_bytes_max
        self._by_job: WeakValueDictionary[Job, JobFrames] = WeakValueDictionary()

    def reader(self, job: Job, after: int = 0, channels: Iterable[Channel] = CHANNELS) -> LogReader:
        """Return a reader of `job` that begins after log number `after`. The end is on every channel."""
        frames = self._by_job.get(job)
        if frames is None:
            frames = self._by_job[job] = JobFrames(job, self._narrate, self._frame_bytes_max)
        if after:
            self._tally.resumes += 1
        return LogReader(frames, after, channels, self._tally)


class LogReader:
    """One reader of a job's log: `after` is the number of the last record that it has read or skipped."""

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
        """Whether the log has records that this reader has not read."""
        return self.after < len(self._records)

    @property
    def ended(self) -> bool:
        """Whether the job has ended and the reader has read all of it."""
        return not self.pending and self.job.log.ended

    def next(self) -> Frame | None:
        """Return the next frame, as large as the log allows now, or None if there is nothing to read yet."""
        while self.after < len(self._records):
            if self._channels is not None and not self._is_wanted(self._records[self.after]):
                self.after += 1
                continue
            frame = self._frames.following(self.after)
            tally, merged = self._tally, frame.number - self.after - 1
            tally.frames += 1
            if merged:
                tally.merged += merged
            self.after = frame.number
            return frame
        return None

    def is_urgent(self, number: int) -> bool:
        """Return whether the record of this number is for this reader, and more urgent than tokens."""
        record = self._records[number - 1]
        return not isinstance(record.event, Token) and (self._channels is None or self._is_wanted(record))

    def _is_wanted(self, record: Record) -> bool:
        assert self._channels is not None
        if isinstance(record.event, Terminal):
            return True
        return ("token" if isinstance(record.event, Token) else "narration") in self._channels


class _Kept(NamedTuple):
    """A frame that is kept for other readers, and the log's `tail` when it was encoded.

    A `final` one can no longer grow: it ended before the tail, or is not of tokens.
    """

    frame: Frame
    tail: int
    final: bool


class JobFrames:
    """Encodes one job's log and keeps the latest frames, by the log number they follow."""

    def __init__(self, job: Job, narrate: Narrate, frame_bytes_max: int) -> None:
        self.job = job
        self._narrate = narrate
        self._frame_bytes_max = frame_bytes_max
        self._cursor_head = f"{job.log.epoch}-"
        self._include_ids = job.request.include_ids
        self._kept: dict[int, _Kept] = {}
        self._kept_bytes = 0

    def following(self, after: int) -> Frame:
        """Return the frame that follows log number `after`, which must not be the tail."""
        records = self.job.log.records
        tail = len(records)
        kept = self._kept.get(after)
        if kept is not None and (kept.final or kept.tail == tail):
            return kept.frame
        event = records[after].event
        if isinstance(event, Token):
            number = self._end_of_tokens(event, after, tail) if after + 1 < tail else tail
            cursor = self._cursor_head + str(number)
            frame = Frame(number, cursor, encode(self._tokens(event, records[after:number], cursor)))
            final = number < tail
        else:
            number, final = after + 1, True
            cursor = self._cursor_head + str(number)
            frame = Frame(number, cursor, encode(self._other(records[after], cursor)))
        if self.job.watchers != 1:
            # A lone reader shares nothing.
            self._keep(after, _Kept(frame, tail, final))
        return frame

    def _keep(self, after: int, new: _Kept) -> None:
        kept, frame = self._kept, new.frame
        if after in kept:
            self._kept_bytes -= len(kept.pop(after).frame.data)
        kept[after] = new
        self._kept_bytes += len(frame.data)
        while len(kept) > CACHE_FRAMES_MAX or self._kept_bytes > CACHE_BYTES_MAX:
            self._kept_bytes -= len(kept.pop(next(iter(kept))).frame.data)

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
        job_id, merged, index, kind = self.job.id, len(records), first.index, first.kind
        plain = not self._include_ids and first.logprobs is None
        if merged == 1 and plain:
            return TokenFrame(job_id=job_id, cursor=cursor, text=first.text, index=index, kind=kind)
        tokens = [record.event for record in records if isinstance(record.event, Token)]
        text = "".join([token.text for token in tokens])
        if plain:
            return TokenFrame(job_id=job_id, cursor=cursor, text=text, n=merged, index=index, kind=kind)
        return TokenFrame(
            job_id=job_id,
            cursor=cursor,
            text=text,
            n=merged,
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

    def _other(self, record: Record, cursor: str) -> End | NarrationFrame:
        """Return the frame of a record that is not a token."""
        if isinstance(record.event, Terminal):
            return _end(self.job.id, cursor, record.event)
        narration = self._narrate(record)
        assert narration is not None, f"no narration for {type(record.event).__name__}"
        return NarrationFrame(
            job_id=self.job.id,
            cursor=cursor,
            actor=narration.actor,
            action=narration.action,
            target=self.job.id,
            human=narration.human,
            phase=narration.phase,
            queue=None if narration.queue_position is None else QueuePlace(narration.queue_position, narration.eta_ms),
            progress=narration.progress,
            metrics=narration.metrics,
            cute=narration.cute,
            level=narration.level,
            correlation_id=self.job.correlation.correlation_id or None,
            emitted_by=EMITTED_BY,
            emitted_at_ms=record.at_ms,
            duration_ms=narration.duration_ms,
            queue_position=narration.queue_position,
            tokens_in=narration.tokens_in,
            tokens_out=narration.tokens_out,
        )


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
        case _:
            error, usage = event.error, event.usage
            return End(
                job_id=job_id, cursor=cursor, status="expired", finish_reason="deadline", usage=usage, error=error
            )
