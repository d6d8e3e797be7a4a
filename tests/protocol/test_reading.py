"""Reading a log as frames: merging, sharing, order. The properties hold for any log and any interleaving of readers."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.jobs.scripted import Stage
from tests.protocol.wire import Sent, Wire, drain, number, parsed, text, types
from worker.events import Record, Token, TopLogprob
from worker.jobs.job import Job
from worker.jobs.narration import Narration
from worker.observers.narration import narrate
from worker.protocol.reading import CACHE_BYTES_MAX, CACHE_FRAMES_MAX, FrameSource, LogReader, locate


def running(wire: Wire, **body: Any) -> tuple[Job, LogReader]:
    """Return a job in decode whose first token is out, and a reader that has seen all of it."""
    job = wire.stage.create(prompt="Hi", **body)
    wire.stage.start(job)
    wire.stage.tokens(job, "first")
    stream = wire.source.reader(job)
    drain(stream)
    return job, stream


def one(stream: LogReader) -> Sent:
    """Take one frame."""
    frame = stream.next()
    assert frame is not None
    return parsed(frame.data)


def append(job: Job, token: Token) -> None:
    """Write what the scripted engine does not produce."""
    job.log.append(token, at_ms=0)


# ---- merging ---------------------------------------------------------------------------------------------------------


def test_a_reader_that_keeps_up_gets_every_token_by_itself() -> None:
    wire = Wire()
    job, stream = running(wire)
    for word in ("a", "b", "c"):
        wire.stage.tokens(job, word)
        frame = one(stream)
        assert frame["text"] == word
        assert "n" not in frame
    assert stream.next() is None


def test_a_reader_that_is_late_gets_them_merged() -> None:
    wire = Wire()
    job, stream = running(wire)
    wire.stage.tokens(job, "a", "b", "c")
    frame = one(stream)
    assert (frame["text"], frame["n"], frame["cursor"]) == ("abc", 3, job.log.cursor(job.log.tail))


def test_narration_and_the_end_flush() -> None:
    wire = Wire()
    job, stream = running(wire)
    wire.stage.tokens(job, "a", "b")
    wire.stage.jobs.on_lost("killed")
    wire.stage.start(job)
    wire.stage.tokens(job, "c", "d")
    wire.stage.finish(job)
    frames = [parsed(frame.data) for frame in drain(stream)]
    assert types(frames) == ["token", "narration", "narration", "narration", "token", "narration", "end"]
    assert [frame["text"] for frame in frames if frame["type"] == "token"] == ["ab", "cd"]
    assert stream.ended


def test_only_tokens_of_one_choice_merge() -> None:
    wire = Wire()
    job, stream = running(wire, n=2)
    wire.stage.tokens(job, "a", "b", index=0)
    wire.stage.tokens(job, "c", "d", index=1)
    wire.stage.tokens(job, "e", index=0)
    frames = [parsed(frame.data) for frame in drain(stream)]
    assert [(frame["text"], frame.get("index", 0), frame.get("n", 1)) for frame in frames] == [
        ("ab", 0, 2),
        ("cd", 1, 2),
        ("e", 0, 1),
    ]


def test_what_a_reader_holds_is_never_straddled() -> None:
    wire = Wire()
    job, _ = running(wire)
    wire.stage.tokens(job, "a", "b", "c", "d")
    for after in range(job.log.tail):
        stream = wire.source.reader(job, after)
        frame = one(stream)
        assert number(frame["cursor"]) - frame.get("n", 1) == after


@pytest.mark.parametrize("word", ["x" * 50, "\x00" * 50, "é" * 50, "👩‍🚀" * 16, '"\\' * 25])
def test_a_merged_frame_stays_within_its_bytes(word: str) -> None:
    wire = Wire(frame_bytes_max=2048)
    job, stream = running(wire, include=["ids"])
    wire.stage.tokens(job, *([word] * 100))
    frames = drain(stream)
    assert max(len(frame.data) for frame in frames) <= 2048
    assert len(frames) < 50
    assert text(parsed(frame.data) for frame in frames) == word * 100


def test_ids_and_likely_tokens_count_too() -> None:
    wire = Wire(frame_bytes_max=4096)
    job, stream = running(wire, include=["ids", "top_logprobs"])
    likely = (TopLogprob(2**31 - 1, "\x00" * 4, -123.45678901234567),) * 5
    token = Token("", ids=(2**31 - 1,) * 9, logprobs=(-123.45678901234567,) * 9, top_logprobs=(likely,))
    for _ in range(40):
        append(job, token)
    frames = drain(stream)
    assert max(len(frame.data) for frame in frames) <= 4096
    assert len(frames) < 40
    assert sum(len(parsed(frame.data)["ids"]) for frame in frames) == 9 * 40


def test_only_tokens_of_one_kind_merge() -> None:
    wire = Wire()
    job, stream = running(wire)
    kinds: tuple[Literal["reasoning", "text"], ...] = ("reasoning", "reasoning", "text")
    for kind in kinds:
        append(job, Token("x", kind=kind))
    frames = [parsed(frame.data) for frame in drain(stream)]
    assert [(frame["text"], frame.get("kind")) for frame in frames] == [("xx", "reasoning"), ("x", None)]


def test_a_token_larger_than_a_frame_is_sent_whole() -> None:
    wire = Wire(frame_bytes_max=1024)
    job, stream = running(wire)
    wire.stage.tokens(job, "a", "x" * 5000, "b")
    assert [parsed(frame.data)["text"] for frame in drain(stream)] == ["a", "x" * 5000, "b"]


# ---- what a frame carries --------------------------------------------------------------------------------------------


def test_ids_and_log_probabilities_are_there_when_asked_for() -> None:
    wire = Wire()
    job, stream = running(wire, include=["ids", "top_logprobs"])
    wire.stage.tokens(job, "a", "bb", logprobs=True)
    frame = one(stream)
    assert (frame["ids"], frame["logprobs"]) == ([1, 2], [-0.5, -0.5])
    likely = [{"id": 7, "text": "x", "logprob": -0.5}, {"id": 8, "text": "y", "logprob": -9999.0}]
    assert frame["top_logprobs"] == [likely, likely]


def test_ids_are_not_there_when_not_asked_for() -> None:
    wire = Wire()
    job, stream = running(wire)
    wire.stage.tokens(job, "a", "bb")
    assert set(one(stream)) == {"type", "job_id", "cursor", "text", "n"}


def test_the_end_tells_how_and_what_it_took() -> None:
    wire = Wire()
    job, stream = running(wire)
    wire.stage.finish(job, "stop_string", stop_sequence="\n\n")
    frames = [parsed(frame.data) for frame in drain(stream)]
    end = frames[-1]
    assert (end["status"], end["finish_reason"], end["stop_sequence"]) == ("completed", "stop_string", "\n\n")
    assert end["usage"]["completion_tokens"] == 1
    assert "error" not in end and "reason" not in end


def test_a_job_of_several_choices_tells_all_their_reasons() -> None:
    wire = Wire()
    job, stream = running(wire, n=2)
    wire.stage.finish(job, "length", index=1)
    wire.stage.finish(job, "stop", index=0)
    end = parsed(drain(stream)[-1].data)
    assert (end["finish_reason"], end["finish_reasons"]) == ("stop", ["stop", "length"])


@pytest.mark.parametrize(
    ("how", "status", "reason", "code"),
    [
        ("cancel", "cancelled", "cancelled", None),
        ("refuse", "failed", "error", "engine_failed"),
        ("expire", "expired", "deadline", "deadline_exceeded"),
    ],
)
def test_every_way_to_end_has_its_status(how: str, status: str, reason: str, code: str | None) -> None:
    wire = Wire()
    job, stream = running(wire, deadline_ms=100)
    match how:
        case "cancel":
            wire.stage.jobs.cancel("ann", job.id)
        case "refuse":
            wire.stage.refuse(job)
        case "expire":
            wire.stage.clock.advance(100)
            wire.stage.jobs.sweep()
    end = parsed(drain(stream)[-1].data)
    assert (end["type"], end["status"], end["finish_reason"]) == ("end", status, reason)
    assert end.get("error", {}).get("code") == code
    assert end.get("reason") == ("client" if how == "cancel" else None)


# ---- channels --------------------------------------------------------------------------------------------------------


def test_channels_leave_out_what_is_not_wanted_but_never_the_end() -> None:
    wire = Wire()
    job, _ = running(wire)
    wire.stage.tokens(job, "a", "b")
    wire.stage.finish(job)
    seen = {
        channel: [parsed(frame.data) for frame in drain(wire.source.reader(job, 0, [channel]))]
        for channel in ("token", "narration")
    }
    assert types(seen["token"]) == ["token", "token", "end"]
    assert types(seen["narration"]) == ["narration"] * 5 + ["end"]
    assert text(seen["token"]) == "firstab"
    assert types(parsed(frame.data) for frame in drain(wire.source.reader(job, 0, []))) == ["end"]


def test_a_reader_of_one_channel_passes_over_the_other() -> None:
    wire = Wire()
    job = wire.stage.create()
    stream = wire.source.reader(job, 0, ["token"])
    assert stream.pending
    assert stream.next() is None
    assert not stream.pending
    assert not stream.ended


# ---- sharing ---------------------------------------------------------------------------------------------------------


def counted() -> tuple[Wire, list[int]]:
    """Return a wire that records which log numbers are narrated, which is when they are encoded."""
    narrated: list[int] = []

    def count(record: Record) -> Narration | None:
        narrated.append(record.n)
        return narrate(record)

    wire = Wire()
    wire.source = FrameSource(count, wire.tally)
    return wire, narrated


def test_readers_share_frames() -> None:
    wire, narrated = counted()
    job = wire.stage.create()
    streams = [wire.source.reader(job) for _ in range(50)]
    first = [drain(stream) for stream in streams]
    wire.stage.start(job)
    wire.stage.tokens(job, "a")
    second = [drain(stream) for stream in streams]
    wire.stage.tokens(job, "b")
    third = [drain(stream) for stream in streams]
    assert len(third[0]) == 1
    for frames in (first, second, third):
        for other in frames[1:]:
            assert [id(frame) for frame in other] == [id(frame) for frame in frames[0]]
    assert narrated == [1, 2, 3, 5]


def test_late_readers_of_an_ended_job_share_its_merged_frames() -> None:
    wire, narrated = counted()
    job = wire.stage.run(wire.stage.create(), "a", "b", "c")
    streams = [wire.source.reader(job) for _ in range(10)]
    found = [drain(stream) for stream in streams]
    assert len({tuple(id(frame) for frame in frames) for frames in found}) == 1
    assert sorted(narrated) == sorted(set(narrated))


def test_a_sentence_is_encoded_once_however_far_apart_its_readers_are() -> None:
    wire, narrated = counted()
    job = wire.stage.create()
    fast, slow = wire.source.reader(job), wire.source.reader(job)
    drain(fast)
    wire.stage.start(job)
    wire.stage.tokens(job, "a", "b")
    drain(fast)
    drain(slow)
    assert narrated == [1, 2, 3, 5]


def test_a_frame_that_can_still_grow_does_grow() -> None:
    wire = Wire()
    job, fast = running(wire)
    slow = wire.source.reader(job, fast.after)
    wire.stage.tokens(job, "a")
    assert one(fast)["text"] == "a"
    wire.stage.tokens(job, "b")
    assert one(slow)["text"] == "ab"
    assert one(fast)["text"] == "b"


def test_the_memory_for_shared_frames_is_bounded() -> None:
    wire = Wire()
    job, stream = running(wire)
    kept, start = stream._frames._kept, stream.after
    for number_ in range(200):
        wire.stage.tokens(job, "x" * (number_ * 40))
        drain(stream)
        # A frame that grows takes the place of the smaller one.
        wire.source.reader(job, start).next()
        assert len(kept) <= CACHE_FRAMES_MAX
        assert stream._frames._kept_bytes == sum(len(frame.data) for frame, _, _ in kept.values()) <= CACHE_BYTES_MAX


def test_a_frame_too_large_to_keep_is_still_sent() -> None:
    wire = Wire()
    job, stream = running(wire)
    wire.stage.tokens(job, "x" * (CACHE_BYTES_MAX + 1))
    assert len(one(stream)["text"]) == CACHE_BYTES_MAX + 1
    assert not stream._frames._kept


def test_shared_frames_are_forgotten_with_the_last_reader() -> None:
    wire = Wire()
    job = wire.stage.create()
    first, second = wire.source.reader(job), wire.source.reader(job)
    frames = weakref.ref(first._frames)
    assert second._frames is first._frames
    del first
    gc.collect()
    assert frames() is not None
    del second
    gc.collect()
    assert frames() is None
    assert job.text() == ""


# ---- where a reader begins -------------------------------------------------------------------------------------------


def test_where_a_reader_begins() -> None:
    stage = Stage()
    job = stage.create()
    stage.start(job)
    at = locate(job, job.log.cursor(1))
    assert (at.after, at.reset, at.ended) == (1, False, False)
    at = locate(job, job.log.cursor(3))
    assert (at.after, at.reset, at.ended) == (3, False, False)
    for cursor in (None, ""):
        assert locate(job, cursor) == locate(job, job.log.cursor(0))
    for cursor in ("other-1", job.log.cursor(4), "nonsense"):
        at = locate(job, cursor)
        assert (at.after, at.reset, at.ended) == (0, True, False)
    stage.finish(job)
    assert locate(job, job.log.cursor(job.log.tail)).ended
    assert not locate(job, job.log.cursor(job.log.tail - 1)).ended


# ---- properties ------------------------------------------------------------------------------------------------------

OPS = st.one_of(
    st.tuples(st.just("tokens"), st.lists(st.text(max_size=8), min_size=1, max_size=5), st.integers(0, 2)),
    st.tuples(st.just("place"), st.integers(1, 9)),
    st.tuples(st.just("lost")),
    st.tuples(st.just("prefill"), st.integers(1, 9)),
    st.tuples(st.just("pull"), st.integers(0, 3), st.integers(1, 4)),
    st.tuples(st.just("join"), st.integers(0, 60)),
)


@settings(max_examples=150, deadline=None)
@given(
    ops=st.lists(OPS, max_size=25),
    choices=st.integers(1, 3),
    frame_bytes_max=st.sampled_from([1024, 1 << 20]),
    ids=st.booleans(),
    finish=st.booleans(),
)
def test_every_reader_of_any_log_gets_everything_once_and_in_order(
    ops: list[tuple[Any, ...]], choices: int, frame_bytes_max: int, ids: bool, finish: bool
) -> None:
    wire = Wire(frame_bytes_max=frame_bytes_max, engine_deaths_per_job_max=1000)
    job = wire.stage.create(prompt="Hi", n=choices, include=["ids"] if ids else [])
    wire.stage.start(job)
    readers = [Reader(wire, job, 0)]
    for op in ops:
        apply(wire, job, readers, op)
    if finish:
        for index in range(choices):
            wire.stage.finish(job, index=index)
    for reader in readers:
        reader.pull(1 << 30)
        reader.check()
        assert reader.stream.ended == finish


class Reader:
    """A reader that notes what it gets."""

    def __init__(self, wire: Wire, job: Job, start: int) -> None:
        self.job = job
        self.start = min(start, job.log.tail)
        self.stream = wire.source.reader(job, self.start)
        self.got: list[Sent] = []
        self.limit = wire.stage.settings.frame_bytes_max

    def pull(self, most: int) -> None:
        """Take at most so many frames."""
        for _ in range(most):
            frame = self.stream.next()
            if frame is None:
                break
            body = parsed(frame.data)
            assert (body["cursor"], frame.number) == (frame.cursor, number(frame.cursor))
            assert len(frame.data) <= self.limit or body.get("n", 1) == 1
            self.got.append(body)

    def check(self) -> None:
        """Compare with the log: each number once, in order, its text unchanged."""
        at = self.start
        for body in self.got:
            assert number(body["cursor"]) == at + body.get("n", 1)
            at = number(body["cursor"])
        assert at == self.job.log.tail == self.stream.after
        for choice in self.job.choices:
            tokens = [r.event for r in self.job.log.read(self.start) if isinstance(r.event, Token)]
            assert text(self.got, choice.index) == "".join(t.text for t in tokens if t.index == choice.index)
            if self.job.request.include_ids and self.start == 0:
                mine = [f for f in self.got if f["type"] == "token" and f.get("index", 0) == choice.index]
                assert [id_ for f in mine for id_ in f.get("ids", [])] == choice.ids


def apply(wire: Wire, job: Job, readers: list[Reader], op: tuple[Any, ...]) -> None:
    """Do one step of a history."""
    match op:
        case ("tokens", texts, index) if index < len(job.choices):
            wire.stage.tokens(job, *texts, index=index)
        case ("place", position):
            wire.stage.place(job, position)
        case ("lost",):
            wire.stage.jobs.on_lost("killed")
            wire.stage.start(job)
        case ("prefill", done):
            wire.stage.prefill(job, done, 10)
        case ("pull", which, most) if which < len(readers):
            readers[which].pull(most)
        case ("join", start):
            readers.append(Reader(wire, job, start))
