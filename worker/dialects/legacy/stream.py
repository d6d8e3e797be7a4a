"""The dialect of the older worker: another encoder over the same log, and its shape of errors.

Old clients look for markers in the text of a line, and split lines by bytes, not characters. So JSON is ASCII, `[` in
it is escaped, every chunk is one whole line, and there is nothing but `data:` lines.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from worker.errors import FieldError, JobwireError, Unauthorized
from worker.events import Cancelled, Expired, Failed, Finished, Record, Terminal, Token, Usage
from worker.jobs.job import Job
from worker.protocol.reading import Narrate

STOP_REASONS = {"length": "MAX_TOKENS", "stop": "EOS", "grammar": "EOS", "stop_string": "STOP_SEQUENCE"}

STREAM_CODES = {
    "deadline_exceeded": "TIMEOUT",
    "invalid_params": "INVALID_REQUEST",
    "engine_failed": "INFERENCE_FAILED",
    "model_unavailable": "INFERENCE_FAILED",
}
STREAM_CODE_OTHER = "GENERATION_ERROR"

ERROR_CODES = {
    "unauthorized": "INVALID_API_KEY",
    "forbidden": "FORBIDDEN",
    "job_not_found": "JOB_NOT_FOUND",
    "job_lost": "JOB_NOT_FOUND",
    "gone": "GONE",
    "rate_limited": "INSUFFICIENT_RESOURCES",
    "queue_full": "INSUFFICIENT_RESOURCES",
    "too_many_jobs": "INSUFFICIENT_RESOURCES",
    "draining": "WORKER_UNHEALTHY",
    "overloaded": "INSUFFICIENT_RESOURCES",
    "model_unavailable": "WORKER_UNHEALTHY",
    "deadline_exceeded": "INFERENCE_TIMEOUT",
    "engine_failed": "INTERNAL",
    "internal": "INTERNAL",
}
ERROR_CODE_OTHER = "INVALID_REQUEST"

STATUSES = {"invalid_params": 400}
"""Where the old status differs."""

NARRATION_FIELDS = (
    "actor", "action", "target", "human", "cute", "story", "level", "correlation_id", "job_id", "emitted_by",
    "emitted_at_ms", "duration_ms", "queue_position", "tokens_in", "tokens_out", "decode_time_ms",
)  # fmt: skip


class LegacyStream:
    """One reader of a job, from its start: `next` gives one chunk per frame. Choices but the first are not shown."""

    def __init__(self, job: Job, model: str, narrate: Narrate, vram_bytes: int = 0) -> None:
        self.job = job
        self._narrate = narrate
        self._vram_bytes = vram_bytes
        self._after = 0
        self._tokens = 0
        started_at = str(job.created_at_ms // 1000)
        self._ahead = deque([_line({"type": "started", "job_id": job.id, "model": model, "started_at": started_at})])
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the marker that ends the stream was taken."""
        return self._ended and not self._ahead

    def next(self) -> bytes | None:
        """Take the next chunk, or None if there is nothing to take yet."""
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
            self._ended = True
            return self._end(event)
        fields = self._narrate(self.job.id, record)
        assert fields is not None, f"no narration for {type(event).__name__}"
        known = {name: fields[name] for name in NARRATION_FIELDS if name in fields}
        return [_line({"type": "narration", **known, "job_id": self.job.id})]

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
            case Failed(error=error) | Expired(error=error):
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


def legacy_status(error: JobwireError) -> int:
    """Return the HTTP status of an error in this dialect."""
    return STATUSES.get(error.code, error.status)


def legacy_problem(
    error: JobwireError, body: Mapping[str, object] | None = None, *, has_key: bool = True
) -> dict[str, Any]:
    """Return the problem object with the keys that old clients read. `body` is the request, to quote wrong values from;
    `has_key` says whether an API key was sent, right or wrong."""
    code = ERROR_CODES.get(error.code, ERROR_CODE_OTHER)
    if isinstance(error, Unauthorized) and not has_key:
        code = "MISSING_API_KEY"
    fields: dict[str, Any] = msgspec.to_builtins(error.problem())
    fields |= {"status": legacy_status(error), "code": code, "message": error.detail}
    fields["error"] = {"code": code, "message": error.detail}
    if error.errors:
        fields["errors"] = [_field_error(item, body or {}) for item in error.errors]
    return fields


def _field_error(error: FieldError, body: Mapping[str, object]) -> dict[str, object]:
    field = error.pointer.removeprefix("/").replace("/", ".")
    fields: dict[str, object] = {
        "field": field,
        "constraint": error.detail,
        "message": f"{field}: {error.detail}",
        "pointer": error.pointer,
        "detail": error.detail,
    }
    value = body.get(field)
    if isinstance(value, int | float | str) and error.pointer != "/prompt":
        fields["value"] = str(value)[:80]
    return fields
