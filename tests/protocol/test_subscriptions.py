"""What may hold frames back, window and floor: whatever acks come and however time passes, each event comes once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.protocol.wire import ID, OTHER, Client, Sent, Wire, number, text, types
from worker.events import Note, Token
from worker.jobs.job import Job
from worker.protocol import sse


def following(**delivery: Any) -> tuple[Wire, Client, Job]:
    """Return a job whose first token is out, and a client that follows it in this way from there on."""
    wire = Wire()
    job = wire.stage.create(ID)
    wire.stage.start(job)
    wire.stage.tokens(job, "first ")
    client = wire.connect()
    client.send("subscribe", job_id=ID, after=job.log.cursor(job.log.tail), **delivery)
    assert types(client.pull_all()) == ["accepted"]
    return wire, client, job


def say(job: Job, action: str = "remark") -> None:
    """Write a remark into the log."""
    note = Note(actor="test", action=action, human="Something happened")
    job.log.append(note, at_ms=0)


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_a_full_window_lets_frames_grow_until_an_ack() -> None:
    wire, client, job = following(window=1)
    wire.stage.tokens(job, "a")
    [first] = client.pull_all()
    wire.stage.tokens(job, "b", "c", "d")
    assert client.pull() is None
    wakes = client.wakes
    client.send("ack", job_id=ID, cursor=first["cursor"])
    assert client.wakes == wakes + 1
    [second] = client.pull_all()
    assert (second["text"], second["n"]) == ("bcd", 3)


@pytest.mark.parametrize("coalesce_ms", [0, 11])
def test_no_window_keeps_an_end_from_a_connection_that_finishes(coalesce_ms: int) -> None:
    wire, client, job = following(window=1, coalesce_ms=coalesce_ms)
    wire.stage.tokens(job, "a")
    [first] = client.pull_all()
    wire.stage.tokens(job, "b", "c")
    wire.stage.finish(job)
    assert client.pull() is None
    client.session.finish()
    assert types(client.pull_all()) == ["token", "narration", "end"]
    # Its client still says what it has taken in, and is not told off for it.
    client.send("ack", job_id=ID, cursor=first["cursor"])
    assert client.pull_all() == []


def test_one_ack_frees_all_before_it() -> None:
    wire, client, job = following(window=3)
    frames = []
    for word in "abc":
        wire.stage.tokens(job, word)
        frames += client.pull_all()
    wire.stage.tokens(job, "d")
    assert (text(frames), client.pull()) == ("abc", None)
    client.send("ack", job_id=ID, cursor=frames[1]["cursor"])
    for word in "ef":
        frames += client.pull_all()
        wire.stage.tokens(job, word)
    # Two places were free: for "d", which waited, and "e".
    assert (text(frames), client.pull()) == ("abcde", None)


def test_the_end_takes_a_place_like_any_frame() -> None:
    wire, client, job = following(window=1)
    wire.stage.tokens(job, "a")
    [frame] = client.pull_all()
    wire.stage.finish(job)
    assert client.pull() is None
    while frame["type"] != "end":
        client.send("ack", job_id=ID, cursor=frame["cursor"])
        [frame] = client.pull_all()
    assert job.watchers == 0
    # Nothing follows it, and an ack of it, or a late one, is no mistake.
    for cursor in (frame["cursor"], job.log.cursor(1)):
        client.send("ack", job_id=ID, cursor=cursor)
    assert client.pull_all() == []


def test_who_never_acks_does_not_keep_a_job_for_ever() -> None:
    wire, client, job = following(window=1)
    wire.stage.tokens(job, "a")
    [frame] = client.pull_all()
    wire.stage.finish(job)
    wire.stage.clock.advance(wire.stage.settings.retention_s * 1000 - 1)
    wire.stage.jobs.sweep()
    assert (client.pull(), job.watchers) == (None, 1)
    wire.stage.clock.advance(1)
    wire.stage.jobs.sweep()
    assert (client.pull(), job.watchers) == (None, 0)
    assert client.ask("ack", job_id=ID, cursor=frame["cursor"])["error"]["code"] == "job_not_found"


def test_who_is_slow_reads_a_forgotten_job_to_its_end() -> None:
    wire, client, job = following(window=8, coalesce_ms=20)
    wire.stage.tokens(job, "a", "b", "c")
    wire.stage.finish(job)
    wire.stage.clock.advance(wire.stage.settings.retention_s * 1000)
    wire.stage.jobs.sweep()
    frames = client.pull_all()
    assert (text(frames), types(frames)[-1], job.watchers) == ("abc", "end", 0)


def test_a_cancel_acts_and_is_confirmed_although_the_window_is_full() -> None:
    wire, client, job = following(window=1)
    wire.stage.tokens(job, "a")
    [frame] = client.pull_all()
    assert client.ask("cancel", job_id=ID, ref="stop")["ref"] == "stop"
    assert (job.state, client.pull()) == ("cancelled", None)
    client.send("ack", job_id=ID, cursor=frame["cursor"])
    assert types(client.pull_all()) == ["end"]


def test_a_full_window_of_one_job_does_not_hold_up_another() -> None:
    wire, client, job = following(window=1)
    other = wire.stage.create(OTHER)
    client.send("subscribe", job_id=OTHER, window=1)
    wire.stage.tokens(job, "a")
    assert {frame["job_id"] for frame in client.pull_all()} == {ID, OTHER}
    wire.stage.tokens(job, "b")
    wire.stage.start(other)
    assert client.pull() is None
    client.send("ack", job_id=OTHER, cursor=other.log.cursor(1))
    assert [frame["job_id"] for frame in client.pull_all()] == [OTHER]


@pytest.mark.parametrize("cursor", ["gone-1", "nonsense", "", "{epoch}-99", "{epoch}-{unsent}", "{epoch}--1"])
def test_an_ack_of_what_was_never_sent_is_an_error_and_frees_nothing(cursor: str) -> None:
    wire, client, job = following(window=1)
    wire.stage.tokens(job, "a")
    client.pull_all()
    wire.stage.tokens(job, "b", "c")
    cursor = cursor.format(epoch=job.log.epoch, unsent=job.log.tail)
    error = client.ask("ack", job_id=ID, cursor=cursor, ref="r")
    assert (error["type"], error["error"]["code"], error["ref"]) == ("error", "invalid_params", "r")
    assert error["error"]["errors"][0]["pointer"] == "/cursor"
    assert client.pull() is None


def test_an_old_ack_is_ignored() -> None:
    wire, client, job = following(window=2)
    frames = []
    for word in "ab":
        wire.stage.tokens(job, word)
        frames += client.pull_all()
    wire.stage.tokens(job, "c")
    for cursor in (job.log.cursor(1), job.log.cursor(number(frames[0]["cursor"]) - 1)):
        client.send("ack", job_id=ID, cursor=cursor)
        assert client.pull() is None
    for _ in range(3):
        client.send("ack", job_id=ID, cursor=frames[0]["cursor"])
    assert text(client.pull_all()) == "c"
    wire.stage.tokens(job, "d")
    assert client.pull() is None


def test_an_ack_needs_a_job_and_a_window() -> None:
    wire, client, job = following()
    wire.stage.tokens(job, "a")
    [frame] = client.pull_all()
    error = client.ask("ack", job_id=ID, cursor=frame["cursor"])
    assert "window" in error["error"]["detail"]
    assert client.ask("ack", job_id=OTHER, cursor=frame["cursor"])["error"]["code"] == "job_not_found"


def test_following_again_begins_with_an_empty_window() -> None:
    wire, client, job = following(window=1)
    wire.stage.tokens(job, "a")
    client.pull_all()
    client.send("subscribe", job_id=ID, window=1, channels=["token"])
    assert types(client.pull_all()) == ["accepted", "token"]


def test_a_window_may_be_as_large_as_hello_says() -> None:
    wire, client, _ = following(window=8)
    for kind, fields in (("subscribe", {"job_id": ID}), ("create", {"prompt": "Hi"})):
        for window in (9, -1, 1.5, "all"):
            error = client.ask(kind, window=window, **fields)
            assert error["error"]["errors"][0]["pointer"] == "/window"
    assert len(wire.stage.jobs.list("ann")) == 1


# ---- floors ----------------------------------------------------------------------------------------------------------


def test_tokens_of_a_floor_come_together() -> None:
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    assert text(client.pull_all()) == "a"
    for word in "bcd":
        wire.stage.tokens(job, word)
        assert client.pull() is None
    assert wire.stage.clock.due_ms == wire.stage.clock.monotonic_ms() + 20
    wire.stage.clock.advance(19)
    assert client.pull() is None
    wire.stage.clock.advance(1)
    [frame] = client.pull_all()
    assert (frame["text"], frame["n"]) == ("bcd", 3)


def test_a_floor_wakes_a_reader_once_and_only_if_something_waits() -> None:
    wire, client, job = following(coalesce_ms=20)
    for word in "abc":
        wakes = client.wakes
        wire.stage.tokens(job, word)
        assert (text(client.pull_all()), client.wakes) == (word, wakes + 1)
        assert wire.stage.clock.due_ms is None
        wire.stage.tokens(job, "x", "y")
        assert client.wakes == wakes + 1
        wire.stage.clock.advance(20)
        assert client.wakes == wakes + 2
        assert (text(client.pull_all()), wire.stage.clock.due_ms) == ("xy", None)
        wire.stage.clock.advance(20)
        assert client.wakes == wakes + 2


def test_floors_end_together() -> None:
    """Up to a quarter later than asked for, so that jobs that are not quite in step share a wake-up."""
    wire, client, job = following(coalesce_ms=20)
    other = wire.stage.create(OTHER)
    wire.stage.start(other)
    client.send("subscribe", job_id=OTHER, coalesce_ms=20, channels=["token"])
    client.pull_all()
    wire.stage.clock.advance(1)
    for one in (job, other):
        wire.stage.tokens(one, "a")
        client.pull_all()
        wire.stage.tokens(one, "b")
        assert client.pull() is None
        wire.stage.clock.advance(3)
    wire.stage.clock.advance(17)
    assert client.pull() is None
    wire.stage.clock.advance(1)
    assert text(client.pull_all()) == "bb"


def test_a_floor_that_was_let_go_early_is_followed_by_a_whole_one() -> None:
    """The time that was waited for means nothing any more."""
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    client.pull_all()
    wire.stage.tokens(job, "b")
    wire.stage.clock.advance(10)
    say(job)
    assert types(client.pull_all()) == ["token", "narration"]
    wire.stage.tokens(job, "c")
    for _ in range(2):
        assert client.pull() is None
        wire.stage.clock.advance(10)
    assert text(client.pull_all()) == "c"


def test_a_token_that_must_wait_wakes_nobody() -> None:
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    client.pull_all()
    wakes = client.wakes
    wire.stage.tokens(job, "b", "c")
    assert client.wakes == wakes


def test_tokens_after_a_silence_are_not_delayed() -> None:
    wire, client, job = following(coalesce_ms=20)
    for word in "abc":
        wire.stage.tokens(job, word)
        assert text(client.pull_all()) == word
        wire.stage.clock.advance(20)


def test_the_first_token_of_a_job_is_never_delayed() -> None:
    wire = Wire()
    client = wire.connect()
    client.send("create", job_id=ID, prompt="Hi", coalesce_ms=500)
    job = wire.stage.jobs.get("ann", ID)
    wire.stage.start(job)
    client.pull_all()
    wire.stage.tokens(job, "a")
    assert types(client.pull_all()) == ["token", "narration"]


@pytest.mark.parametrize("channels", [["token", "narration"], ["token"]])
def test_narration_and_the_end_let_go_what_was_held_back(channels: list[str]) -> None:
    wire, client, job = following(coalesce_ms=500, channels=channels)
    wire.stage.tokens(job, "a")
    client.pull_all()
    wire.stage.tokens(job, "b", "c")
    assert client.pull() is None
    wakes = client.wakes
    say(job)
    if "narration" in channels:
        assert client.wakes == wakes + 1
        assert types(client.pull_all()) == ["token", "narration"]
    else:
        # It is none of this reader's business.
        assert client.wakes == wakes
        assert client.pull() is None
    wire.stage.tokens(job, "d")
    assert client.pull() is None
    wire.stage.finish(job)
    frames = client.pull_all()
    assert types(frames)[0] == "token"
    assert types(frames)[-1] == "end"


def test_what_comes_after_narration_keeps_to_the_floor() -> None:
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    client.pull_all()
    wire.stage.tokens(job, "b")
    say(job)
    wire.stage.tokens(job, "c")
    assert types(client.pull_all()) == ["token", "narration"]
    wire.stage.clock.advance(20)
    assert text(client.pull_all()) == "c"


def test_a_floor_is_of_times_not_of_frames() -> None:
    """Tokens of several choices do not merge: all that waits goes when the time has come."""
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    client.pull_all()
    for index in (1, 0, 1, 0):
        job.log.append(Token(text="x", index=index), at_ms=0)
    assert client.pull() is None
    wire.stage.clock.advance(20)
    assert types(client.pull_all()) == ["token"] * 4


def test_jobs_have_floors_of_their_own() -> None:
    wire, client, job = following(coalesce_ms=20)
    other = wire.stage.create(OTHER)
    wire.stage.start(other)
    client.send("subscribe", job_id=OTHER, coalesce_ms=100, channels=["token"])
    wire.stage.tokens(job, "a")
    wire.stage.tokens(other, "x")
    assert len(client.pull_all()) == 3
    wire.stage.tokens(other, "y")
    wire.stage.tokens(job, "b")
    assert client.pull() is None
    now = wire.stage.clock.monotonic_ms()
    assert wire.stage.clock.due_ms == now + 20
    wire.stage.clock.advance(20)
    assert text(client.pull_all()) == "b"
    wire.stage.clock.advance(20)
    assert client.pull_all() == []
    assert wire.stage.clock.due_ms == now + 100
    client.send("unsubscribe", job_id=OTHER)
    wire.stage.clock.advance(60)
    assert client.pull_all() == []
    assert wire.stage.clock.due_ms is None


def test_a_silence_is_broken_although_something_is_held_back() -> None:
    wire, client, job = following(window=1)
    wire.stage.tokens(job, "a", "b")
    client.pull_all()
    wire.stage.tokens(job, "c")
    assert client.pull() is None
    client.session.heartbeat()
    assert types(client.pull_all()) == ["pong"]


# ---- whatever happens ------------------------------------------------------------------------------------------------


class Reading:
    """One reader with a window and a floor, held to what is promised."""

    def __init__(self, window: int, coalesce_ms: int) -> None:
        self.window, self.coalesce_ms = window, coalesce_ms
        self.wire, self.client, self.job = following(window=window, coalesce_ms=coalesce_ms)
        self.frames: list[Sent] = []
        self.reached = self.job.log.tail
        self.unacked: list[str] = []
        self.token_ms = -1e9
        # The end of the log when the floor was last over: what was there then goes on together.
        self.released = 0
        self.idle_wakes: int | None = None

    def produce(self, count: int) -> None:
        """Let the job say something."""
        for _ in range(count):
            self.wire.stage.tokens(self.job, f"{self.job.log.tail} ")

    def pass_ms(self, ms: int) -> None:
        """Let time pass."""
        self.wire.stage.clock.advance(ms)

    def pull(self) -> bool:
        """Take a frame and check it; tell whether there was one."""
        now_ms = self.wire.stage.clock.monotonic_ms()
        early, before = now_ms < self.token_ms + self.coalesce_ms, self.reached
        if not early and not len(self.unacked) == self.window > 0:
            self.released = self.job.log.tail
        frame = self.client.pull()
        if frame is None:
            self.idle_wakes = self.client.wakes
            waits = self.reached < self.job.log.tail
            timed = self.wire.stage.clock.due_ms is not None
            assert not waits or timed or len(self.unacked) == self.window > 0
            return False
        assert self.client.wakes != self.idle_wakes, "nobody would have asked for this frame"
        assert number(frame["cursor"]) == self.reached + frame.get("n", 1)
        self.reached = number(frame["cursor"])
        self.frames.append(frame)
        if self.window:
            self.unacked.append(frame["cursor"])
            assert len(self.unacked) <= self.window
        if frame["type"] == "token":
            following = self.job.log.records[self.reached : self.reached + 1]
            flushed = any(not isinstance(record.event, Token) for record in following)
            assert not early or before < self.released or flushed
            self.token_ms = now_ms
        return True

    def ack(self, which: int) -> None:
        """Ack one of the frames, an old one perhaps."""
        if self.frames and self.window:
            cursor = self.frames[which % len(self.frames)]["cursor"]
            self.client.send("ack", job_id=ID, cursor=cursor)
            if cursor in self.unacked:
                del self.unacked[: self.unacked.index(cursor) + 1]

    def complete(self) -> None:
        """In the end everything comes, as it was written."""
        self.wire.stage.finish(self.job)
        for _ in range(3 * self.job.log.tail):
            if not self.pull():
                self.ack(-1)
                self.pass_ms(self.coalesce_ms)
        assert types(self.frames)[-1] == "end"
        assert "first " + text(self.frames) == self.job.text()
        assert self.reached == self.job.log.tail


STEPS = st.lists(
    st.tuples(st.just("produce"), st.integers(1, 3))
    | st.tuples(st.just("pull"), st.integers(1, 3))
    | st.tuples(st.just("pass"), st.integers(0, 60))
    | st.tuples(st.just("ack"), st.integers(-3, 30))
    | st.tuples(st.just("say"), st.just(0)),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0, 1, 2, 7]), st.sampled_from([0, 1, 20, 50]), STEPS)
@example(1, 20, [("produce", 1), ("pull", 1), ("produce", 1), ("pull", 2), ("ack", -1), ("say", 0), ("pull", 3)])
def test_every_event_comes_once_and_in_order(window: int, coalesce_ms: int, steps: list[tuple[str, int]]) -> None:
    reading = Reading(window, coalesce_ms)
    for what, amount in steps:
        if what == "produce":
            reading.produce(amount)
        elif what == "pull":
            for _ in range(amount):
                reading.pull()
        elif what == "pass":
            reading.pass_ms(amount)
        elif what == "ack":
            reading.ack(amount)
        else:
            say(reading.job)
    reading.complete()


# ---- event streams ---------------------------------------------------------------------------------------------------


def streaming(coalesce_ms: int) -> tuple[Wire, Job, sse.SseReader, list[int]]:
    """Return a running job, a stream of it, and a list that grows whenever the stream wakes its reader."""
    wire = Wire()
    job = wire.stage.create(ID)
    wire.stage.start(job)
    wakes: list[int] = []
    log = wire.source.reader(job, 0, ["token"])
    stream = sse.SseReader(log, coalesce_ms, lambda: wakes.append(1), wire.stage.clock)
    wire.stage.jobs.watch(job, stream.notify)
    return wire, job, stream, wakes


def taken(stream: sse.SseReader, wire: Wire) -> list[Sent]:
    """Take all frames that there are now."""
    events = iter(lambda: stream.next(wire.stage.clock.monotonic_ms()), None)
    return [json.loads(event.split(b"data: ")[1]) for event in events]


def test_an_event_stream_keeps_to_its_floor_and_sleeps_meanwhile() -> None:
    wire, job, stream, wakes = streaming(20)
    wire.stage.tokens(job, "a")
    assert text(taken(stream, wire)) == "a"
    woken = len(wakes)
    wire.stage.tokens(job, "b", "c", "d")
    assert len(wakes) == woken
    assert taken(stream, wire) == []
    wire.stage.clock.advance(20)
    assert len(wakes) == woken + 1
    assert text(taken(stream, wire)) == "bcd"
    assert not stream.ended
    wire.stage.tokens(job, "e")
    assert taken(stream, wire) == []
    wire.stage.finish(job)
    assert len(wakes) > woken
    assert types(taken(stream, wire)) == ["token", "end"]
    assert stream.ended


def test_an_event_stream_without_a_floor_says_everything_at_once() -> None:
    wire, job, stream, wakes = streaming(0)
    for word in "abc":
        woken = len(wakes)
        wire.stage.tokens(job, word)
        assert len(wakes) > woken
        assert text(taken(stream, wire)) == word
    assert wire.stage.clock.due_ms is None
