"""The stream of the older worker: another encoder over the same log.

Old clients search the text of a line for markers, and split lines by bytes, not characters. So JSON is ASCII, `[` in
it is escaped, every chunk is one whole line, and there are no lines but `data:` lines.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping

from worker.events import Cancelled, Finished, Record, Terminal, Token, Usage
from worker.jobs.job import Job
from worker.jobs.narration import EMITTED_BY, Narrate

STOP_REASONS = {"length": "MAX_TOKENS", "stop": "EOS", "grammar": "EOS", "stop_string": "STOP_SEQUENCE"}

STREAM_CODES = {
    "deadline_exceeded": "TIMEOUT",
    "invalid_params": "INVALID_REQUEST",
    "engine_failed": "INFERENCE_FAILED",
    "model_unavailable": "INFERENCE_FAILED",
}
STREAM_CODE_OTHER = "GENERATION_ERROR"


class LegacyReader:
    """One reader of a job, from its start: `next` returns one chunk per event. It shows the first choice only."""

    def __init__(self, job: Job, model: str, narrate: Narrate, vram_bytes: int = 0) -> None:
        self.job = job
        self._narrate = narrate
        self._vram_bytes = vram_bytes
        self._after = 0
        self._tokens = 0
        started_at = str(job.created_at_ms // 1000)
        self._ahead = deque([_line({"type": "started", "job_id": job.id, "model": model, "started_at": started_at})])
        self._at_end = False

    @property
    def ended(self) -> bool:
        """Whether the marker that ends the stream was read."""
        return self._at_end and not self._ahead

    def next(self) -> bytes | None:
        """Return the next chunk, or None if there is nothing to send yet."""
        records = self.job.log.records
        while not self._ahead and self._after < len(records):
            record = records[self._after]
            self._after += 1
            self._ahead.extend(self._lines(record))
        return self._ahead.popleft() if self._ahead else None

    def _lines(self, record: Record) -> list[bytes]:
        event = record.event
        if isinstance(event, Token):
            return self._token(event)
        if isinstance(event, Terminal):
            self._at_end = True
            return self._end(event)
        return [_line(self._narration(record))]

    def _narration(self, record: Record) -> dict[str, object]:
        """Return a narration with its fields in the old order. Absent ones are left out."""
        narration = self._narrate(record)
        assert narration is not None, f"no narration for {type(record.event).__name__}"
        fields: dict[str, object] = {
            "type": "narration",
            "actor": narration.actor,
            "action": narration.action,
            "target": self.job.id,
            "human": narration.human,
            "cute": narration.cute,
            "level": narration.level,
            "emitted_by": EMITTED_BY,
            "emitted_at_ms": record.at_ms,
            "duration_ms": narration.duration_ms,
            "queue_position": narration.queue_position,
            "tokens_in": narration.tokens_in,
            "tokens_out": narration.tokens_out,
            "job_id": self.job.id,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _token(self, token: Token) -> list[bytes]:
        if token.index:
            return []
        line = _line({"type": "token", "t": token.text, "i": self._tokens})
        self._tokens += 1
        return [line]

    def _end(self, event: Terminal) -> list[bytes]:
        match event:
            case Finished(usage=usage):
                metrics = {"type": "metrics", "tokens_per_sec": usage.tokens_per_s, "vram_bytes": self._vram_bytes}
                end = _end(usage, STOP_REASONS[event.finish_reason])
                if event.stop_sequence is not None:
                    end["stop_sequence_matched"] = event.stop_sequence
                return [*([_line(metrics)] if usage.tokens_per_s is not None else []), _line(end), _marker("[DONE]")]
            case Cancelled(usage=usage):
                return [_line(_end(usage, "CANCELLED")), _marker("[CANCELLED]")]
            case _:
                error = event.error
                code = STREAM_CODES.get(error.code, STREAM_CODE_OTHER)
                fields = {"type": "error", "code": code, "message": error.detail, "retriable": error.retriable}
                return [_line(fields), _marker(f"[ERROR] {error.detail}")]


def _end(usage: Usage, stop_reason: str) -> dict[str, object]:
    decode_ms = 0 if usage.ttft_ms is None else usage.total_ms - usage.ttft_ms
    return {
        "type": "end",
        "tokens_out": usage.completion_tokens,
        "decode_time_ms": decode_ms,
        "stop_reason": stop_reason,
    }


def _line(fields: Mapping[str, object]) -> bytes:
    """Return one frame. There are no lists in these frames, so every `[` is inside a string."""
    return b"data: " + json.dumps(fields, separators=(",", ":")).replace("[", "\\u005b").encode() + b"\n\n"


def _marker(text: str) -> bytes:
    """Return a marker line: ASCII, and never more than one line."""
    return b"data: " + " ".join(text.split()).encode("ascii", "backslashreplace") + b"\n\n"
