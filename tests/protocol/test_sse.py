"""Frames as server-sent events, read back by a parser that follows the standard."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS, Stage
from tests.protocol.wire import ID, Wire, drain
from worker.errors import InvalidParams
from worker.protocol import sse


def read(body: bytes) -> tuple[list[tuple[str | None, str]], str]:
    """Parse an event stream (HTML standard, 9.2.6): return (last event id, data) of each event, and the retry time."""
    events: list[tuple[str | None, str]] = []
    last_id, data, retry = None, list[str](), ""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((last_id, "\n".join(data)))
            data = []
        elif field == "id":
            last_id = value
        elif field == "data":
            data.append(value)
        elif field == "retry":
            retry = value
        else:
            assert line.startswith(":"), f"unexpected field {field}"
    return events, retry


def test_a_stream_from_its_prologue_to_its_end() -> None:
    wire = Wire()
    job = wire.stage.run(wire.stage.create(ID), "Hel", "lo")
    frames = drain(wire.source.reader(job))
    events, retry = read(sse.prologue(reset=False) + b"".join(map(sse.encode, frames)))
    assert retry == "1000"
    assert [data.encode() for _, data in events] == [frame.data for frame in frames]
    assert [last_id for last_id, _ in events] == [json.loads(data)["cursor"] for _, data in events]


@given(st.text(max_size=50))
def test_any_text_arrives_as_it_was(text: str) -> None:
    wire = Wire()
    job = wire.stage.run(wire.stage.create(ID), text)
    events, _ = read(b"".join(map(sse.encode, drain(wire.source.reader(job, channels=["token"])))))
    assert "".join(json.loads(data).get("text", "") for _, data in events) == text


def test_a_reset_is_told_first_and_has_no_id() -> None:
    events, _ = read(sse.prologue(reset=True))
    assert events == [(None, '{"type":"accepted","reset":true}')]
    assert read(sse.prologue(reset=False))[0] == []


def test_a_heartbeat_is_no_event() -> None:
    assert read(sse.HEARTBEAT) == ([], "")


@pytest.mark.parametrize(("text", "ms"), [(None, 0), ("", 0), ("0", 0), ("20", 20), ("0500", 500)])
def test_a_query_may_ask_for_a_floor(text: str | None, ms: int) -> None:
    assert sse.coalesce_ms(text, LIMITS) == ms


@pytest.mark.parametrize("text", ["501", "-1", "1.5", "fast", " 20", "\u0662\u0660", "9" * 5000])
def test_a_floor_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        sse.coalesce_ms(text, LIMITS)
    assert refused.value.errors[0].pointer == "/coalesce_ms"


def test_the_first_narration_of_one_reader_names_ignored_fields() -> None:
    """In a copy: frames are encoded once, and others get them as they are."""
    wire = Wire()
    job = wire.stage.run(wire.stage.create(ID), "a")
    readers = [
        sse.SseReader(wire.source.reader(job), 0, lambda: None, wire.stage.clock, ignored)
        for ignored in (["max_token", '"'], [])
    ]
    named, plain = [read(b"".join(iter(lambda r=r: r.next(0), None)))[0] for r in readers]  # type: ignore[misc]
    assert [last_id for last_id, _ in named] == [last_id for last_id, _ in plain]
    first, *others = [json.loads(data) for _, data in named]
    assert first.pop("ignored") == ["max_token", '"']
    assert [first, *others] == [json.loads(data) for _, data in plain]


def test_a_reader_of_text_alone_is_told_by_the_header() -> None:
    wire = Wire()
    job = wire.stage.run(wire.stage.create(ID), "a")
    reader = sse.SseReader(wire.source.reader(job, 0, ["token"]), 0, lambda: None, wire.stage.clock, ["x"])
    assert b"ignored" not in b"".join(iter(lambda: reader.next(0), None))


@given(st.lists(st.text(min_size=1, max_size=40), max_size=8))
def test_any_names_fit_a_header(names: list[str]) -> None:
    header = sse.ignored_header(names)
    assert bool(header) == bool(names)
    if names:
        [value] = header.values()
        assert value.isascii() and value.isprintable() and " " not in value
        assert [unquote(name) for name in value.split(",")] == [
            name.encode(errors="replace").decode() for name in names
        ]


def test_last_event_id_wins_over_the_query() -> None:
    stage = Stage()
    job = stage.run(stage.create(ID), "a", "b")
    first, second, end = job.log.cursor(1), job.log.cursor(2), job.log.cursor(job.log.tail)
    assert sse.start(job, first, second).after == 1
    assert sse.start(job, None, second).after == 2
    assert sse.start(job, "", second).after == 2
    assert sse.start(job, None, None).after == 0
    assert sse.start(job, "gone-1", second).reset
    assert sse.start(job, end, first).ended
    assert not sse.start(job, first, end).ended
