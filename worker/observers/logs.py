"""Logs: one line per event, for people or for machines, with the job and the correlation id where there are some.

Messages are names of events or sentences; further facts stand in `extra`, and both formats show all of them. In neither
can a text begin a line of its own, or steer the terminal that shows it. Prompts and answers are never logged, unless
`log_prompts` is set. What anybody could write into the log by asking for nothing, refusals and the traces of bugs, is
bounded by `LineBudget`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOBase
from textwrap import indent
from typing import Any, TextIO

from worker import printable
from worker.config import Settings
from worker.events import TERMINAL, Cancelled, Finished, Record, Terminal
from worker.jobs.job import Job

PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every log record has, and those that formatting adds. The others were given as `extra`."""

NAMES = ("job_id", "principal", "correlation_id")
"""Fields that name a job. They are long, so the pretty format puts them last."""

WINDOW_S = 60.0
REFUSED = "refused"
"""The event of all refusals. Lines about jobs, engines and settings always pass."""

logger = logging.getLogger(__name__)


def configure(settings: Settings, stream: TextIO | TextIOBase) -> None:
    """Send the logs of this process to `stream`, in the format and from the level of the settings."""
    pretty = settings.log_format == "pretty" or (settings.log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrettyFormatter() if pretty else JsonFormatter())
    if settings.log_refusals_per_minute_max:
        handler.addFilter(LineBudget(settings.log_refusals_per_minute_max, time.monotonic))
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)


def given(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that were given as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in PLAIN and value not in (None, "")}


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


class JsonFormatter(logging.Formatter):
    """A JSON object per line, always in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **given(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        # The one control character that JSON leaves as it is.
        return json.dumps(fields, default=str).replace("\x7f", "\\u007f")


class PrettyFormatter(logging.Formatter):
    """Time, level, event, and its fields as `name=value`: names of things last, because they are long."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it if there is one, indented: its text may be a client's."""
        known = sorted(given(record).items(), key=lambda pair: pair[0] in NAMES)
        pairs = [f"{name}={value if _is_plain(value) else repr(value)}" for name, value in known]
        source = "" if record.name.startswith("worker.") else f"{record.name}: "
        head = f"{_time(record):%H:%M:%S} {record.levelname:7} {source}{record.getMessage()}"
        line = printable.in_line("  ".join([head, *pairs]))
        if not record.exc_info:
            return line
        return f"{line}\n{indent(printable.in_lines(self.formatException(record.exc_info)), '    ', lambda _: True)}"


def _is_plain(value: object) -> bool:
    """Return whether a value can stand in a line without quotes."""
    return not isinstance(value, str) or (value.isprintable() and " " not in value)


@dataclass(slots=True)
class _Window:
    begun_s: float = -math.inf
    passed: int = 0
    left_out: int = 0


class LineBudget(logging.Filter):
    """Lets `lines_per_minute_max` lines of each kind pass; the next one that passes has the number of `left_out`.

    The kind of a refusal is its code, that of a trace its message. The metrics count every refusal all the same.
    """

    def __init__(self, lines_per_minute_max: int, monotonic_s: Callable[[], float]) -> None:
        super().__init__()
        self._lines_max = lines_per_minute_max
        self._monotonic_s = monotonic_s
        self._windows: dict[tuple[object, ...], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        if record.msg != REFUSED and not record.exc_info:
            return True
        kind = record.msg, getattr(record, "code", None), getattr(record, "close_code", None)
        window, now_s = self._windows.setdefault(kind, _Window()), self._monotonic_s()
        if now_s - window.begun_s >= WINDOW_S:
            window.begun_s, window.passed = now_s, 0
        if window.passed >= self._lines_max:
            window.left_out += 1
            return False
        window.passed += 1
        record.left_out = window.left_out or None
        window.left_out = 0
        return True


class JobLines:
    """Observes all jobs and logs the end of each in one line, `with_texts` together with its prompt and output."""

    def __init__(self, *, with_texts: bool) -> None:
        self._with_texts = with_texts

    def observe(self, job: Job, record: Record) -> None:
        """Log a record that is worth a line."""
        event = record.event
        if isinstance(event, TERMINAL):
            logger.info("job_ended", extra=self._end(job, event))
        elif record.n == 1:
            logger.debug("job_created", extra={**names(job), "operation": job.request.operation})

    def _end(self, job: Job, event: Terminal) -> dict[str, Any]:
        usage = event.usage
        fields = {**names(job), "status": job.state, "reason": _reason(event)}
        fields |= {name: getattr(usage, name) for name in usage.__struct_fields__}
        if self._with_texts:
            prompt = job.request.prompt
            asked = [f"{message.role}: {message.content}" for message in prompt.messages]
            fields |= {"prompt": "\n".join(asked) or prompt.text, "output": job.text()}
        return fields


def names(job: Job) -> dict[str, str]:
    """Return the names of a job, its creator's and ours."""
    return {"job_id": job.id, "principal": job.owner_name, "correlation_id": job.correlation.correlation_id}


def _reason(event: Terminal) -> str:
    match event:
        case Finished():
            return event.finish_reason
        case Cancelled():
            return event.reason
        case _:
            return event.error.code
