"""What a line of the log holds, in both formats."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import pytest

from tests.jobs.scripted import LIMITS
from tests.observers.stage import watched
from worker.config import Settings
from worker.jobs.correlation import Correlation
from worker.observers.logs import JobLines, JsonFormatter, PrettyFormatter, configure, given
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer


def record(message: str, *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("worker.test").makeRecord(
        "worker.test", level, "file.py", 1, message, args, None, extra=extra or None
    )
    made.created = 1_761_838_000.25
    return made


def test_a_json_line_has_everything() -> None:
    line = JsonFormatter().format(record("took %d", 5, level=logging.WARNING, job_id="j", tokens=3))
    assert json.loads(line) == {
        "time": "2025-10-30T15:26:40.250+00:00",
        "level": "warning",
        "logger": "worker.test",
        "event": "took 5",
        "job_id": "j",
        "tokens": 3,
    }


@pytest.mark.parametrize(
    "text", ["two\nlines", "half \ud83d a pair", '"quoted"', "\x1b[31mred", "\u2028 separators", "a\x7fb"]
)
def test_a_json_line_is_one_line_of_ascii_whatever_is_logged(text: str) -> None:
    line = JsonFormatter().format(record("%s", text, text=text, thing=object()))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["event"] == json.loads(line)["text"] == text


def test_a_pretty_line() -> None:
    line = PrettyFormatter().format(record("job_ended", job_id="j", ttft_ms=4, why="it was told to"))
    assert line == "15:26:40 INFO    job_ended  ttft_ms=4  why='it was told to'  job_id=j"


def test_a_pretty_line_says_which_library_speaks() -> None:
    made = record("it is late")
    made.name = "asyncio"
    assert PrettyFormatter().format(made) == "15:26:40 INFO    asyncio: it is late"


def test_a_pretty_value_cannot_begin_a_line_of_its_own() -> None:
    assert "\n" not in PrettyFormatter().format(record("x", text="a\nb"))


@pytest.mark.parametrize(
    "text", ["a\n12:00:00 ERROR forged", "\x1b[2J", "\x9b2J", "\x7f", "\u2028x", "\u202eevil", "\r"]
)
@pytest.mark.parametrize("where", ["message", "argument", "extra", "logger", "exception"])
def test_nothing_in_a_pretty_line_acts(text: str, where: str) -> None:
    made = record(text) if where == "message" else record("%s", text) if where == "argument" else record("x")
    if where == "extra":
        made = record("x", text=text, thing=[text])
    elif where == "logger":
        made.name = text
    elif where == "exception":
        try:
            raise ValueError(text)
        except ValueError:
            made.exc_info = sys.exc_info()
    head, *below = PrettyFormatter().format(made).split("\n")
    assert head.isprintable()
    assert all(line.startswith("    ") and line.isprintable() for line in below)
    assert bool(below) == (where == "exception")


@pytest.mark.parametrize("formatter", [JsonFormatter(), PrettyFormatter()], ids=["json", "pretty"])
def test_exceptions_are_shown(formatter: logging.Formatter) -> None:
    made = record("it broke")
    try:
        raise ValueError("the reason")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: the reason" in formatter.format(made)


def test_what_is_not_known_is_left_out() -> None:
    assert given(record("x", a=None, b="", c=0, d=False)) == {"c": 0, "d": False}


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("pretty", io.StringIO(), False),
    ],
)
def test_the_format_follows_the_setting_or_the_stream(log_format: Any, stream: io.StringIO, is_json: bool) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    try:
        configure(Settings(log_format=log_format, log_level="warning"), stream)
        logging.getLogger("worker.test").warning("hello")
        logging.getLogger("worker.test").info("too quiet")
    finally:
        root.handlers = before
        root.setLevel(level)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("{") == is_json
    assert "hello" in line


# ---- jobs ------------------------------------------------------------------------------------------------------------


def ended(caplog: pytest.LogCaptureFixture, *, with_texts: bool = False, end: str = "finish") -> dict[str, Any]:
    """Run a job to its end, and return what its last line holds."""
    caplog.set_level(logging.INFO)
    stage = watched(lambda _: JobLines(with_texts=with_texts).observe)
    request = Infer().parse({"messages": [{"role": "user", "content": "a secret"}]}, LIMITS, WrongFields())
    owner = stage.create().owner
    job, _ = stage.jobs.create(owner, "job-of-this-test", request, correlation=Correlation("corr-1"))
    stage.start(job, prompt_tokens=9)
    stage.clock.advance(25)
    stage.tokens(job, "an ", "answer")
    if end == "finish":
        stage.finish(job, "length")
    elif end == "cancel":
        stage.jobs.cancel(job.owner_name, job.id)
    else:
        stage.refuse(job, "no room for a secret")
    (line,) = [one for one in caplog.records if one.message == "job_ended"]
    return given(line)


def test_the_end_of_a_job_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    line = ended(caplog)
    assert line == {
        "job_id": "job-of-this-test",
        "principal": "ann",
        "correlation_id": "corr-1",
        "status": "completed",
        "reason": "length",
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "queue_ms": 0,
        "total_ms": 25,
        "ttft_ms": 25,
    }


@pytest.mark.parametrize(
    ("end", "status", "reason"), [("cancel", "cancelled", "client"), ("", "failed", "engine_failed")]
)
def test_other_ends_say_why(caplog: pytest.LogCaptureFixture, end: str, status: str, reason: str) -> None:
    line = ended(caplog, end=end)
    assert (line["status"], line["reason"]) == (status, reason)
    assert "secret" not in str(line)


def test_texts_are_logged_only_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    line = ended(caplog, with_texts=True)
    assert (line["prompt"], line["output"]) == ("user: a secret", "an answer")
