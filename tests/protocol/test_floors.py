"""A floor: the least time between two frames of tokens, over a WebSocket and in an event stream."""

from __future__ import annotations

import json

import pytest

from tests.protocol.wire import ID, OTHER, Sent, Wire, following, remark, text, types
from worker.events import Token
from worker.jobs.job import Job
from worker.protocol import sse

BEAT_MS = 40
"""From a frame of tokens, sent when the clock is at a multiple of 20 ms, to the beat that ends a pause of 20 ms."""


def test_tokens_of_a_floor_come_with_the_first_one_after_it() -> None:
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    assert text(client.pull_all()) == "a"
    for word in "bcd":
        wire.stage.tokens(job, word)
        assert client.pull() is None
        wire.stage.clock.advance(6)
    wire.stage.clock.advance(2)
    wakes = client.wakes
    assert client.pull() is None
    wire.stage.tokens(job, "e")
    [frame] = client.pull_all()
    assert (frame["text"], frame["n"], client.wakes) == ("bcde", 4, wakes + 1)


def test_without_another_token_a_beat_ends_the_floor() -> None:
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    client.pull_all()
    wire.stage.tokens(job, "b", "c")
    assert wire.stage.clock.due_ms == wire.stage.clock.monotonic_ms() + BEAT_MS
    wire.stage.clock.advance(BEAT_MS - 1)
    assert client.pull() is None
    wire.stage.clock.advance(1)
    [frame] = client.pull_all()
    assert (frame["text"], frame["n"]) == ("bc", 2)


def test_a_floor_wakes_a_reader_once_and_only_if_something_waits() -> None:
    wire, client, job = following(coalesce_ms=20)
    for word in "abc":
        wakes = client.wakes
        wire.stage.tokens(job, word)
        assert (text(client.pull_all()), client.wakes) == (word, wakes + 1)
        assert wire.stage.clock.due_ms is None
        wire.stage.tokens(job, "x", "y")
        assert client.wakes == wakes + 1
        wire.stage.clock.advance(BEAT_MS)
        assert client.wakes == wakes + 2
        assert (text(client.pull_all()), wire.stage.clock.due_ms) == ("xy", None)
        wire.stage.clock.advance(BEAT_MS)
        assert client.wakes == wakes + 2


def test_a_beat_that_finds_a_later_floor_waits_for_that() -> None:
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    client.pull_all()
    wire.stage.tokens(job, "b")
    wire.stage.clock.advance(25)
    wire.stage.tokens(job, "c")
    assert text(client.pull_all()) == "bc"
    wakes = client.wakes
    wire.stage.clock.advance(5)
    wire.stage.tokens(job, "d")
    wire.stage.clock.advance(10)
    assert (client.wakes, client.pull()) == (wakes, None), "the beat of the floor before wakes nobody"
    wire.stage.clock.advance(20)
    assert text(client.pull_all()) == "d"
    assert wire.stage.clock.due_ms is None


def test_floors_end_together() -> None:
    """At a beat, so that jobs that are not quite in step share a wake-up."""
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
    wire.stage.clock.advance(BEAT_MS - 8)
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
    remark(job)
    assert types(client.pull_all()) == ["token", "narration"]
    wire.stage.tokens(job, "c")
    for _ in range(2):
        assert client.pull() is None
        wire.stage.clock.advance(10)
    wire.stage.tokens(job, "d")
    assert text(client.pull_all()) == "cd"


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
    remark(job)
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
    remark(job)
    wire.stage.tokens(job, "c")
    assert types(client.pull_all()) == ["token", "narration"]
    wire.stage.clock.advance(BEAT_MS)
    assert text(client.pull_all()) == "c"


def test_a_floor_is_of_times_not_of_frames() -> None:
    """Tokens of several choices do not merge: all that waits goes when the time has come."""
    wire, client, job = following(coalesce_ms=20)
    wire.stage.tokens(job, "a")
    client.pull_all()
    for index in (1, 0, 1, 0):
        job.log.append_token(Token(text="x", index=index), at_ms=0)
    job.log.wake()
    assert client.pull() is None
    wire.stage.clock.advance(BEAT_MS)
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
    assert wire.stage.clock.due_ms == now + BEAT_MS
    wire.stage.clock.advance(BEAT_MS)
    assert text(client.pull_all()) == "b"
    assert wire.stage.clock.due_ms == now + 200
    client.send("unsubscribe", job_id=OTHER)
    wire.stage.clock.advance(200)
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
    wire.stage.clock.advance(BEAT_MS)
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
