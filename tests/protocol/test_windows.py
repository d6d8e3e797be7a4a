"""A window: frames in flight without an ack. A full one makes frames grow, and keeps nothing else back."""

from __future__ import annotations

import pytest

from tests.protocol.wire import ID, OTHER, following, number, remark, text, types


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


def test_a_connection_that_finishes_needs_no_window() -> None:
    wire, client, job = following()
    wire.stage.tokens(job, "a")
    client.session.finish()
    assert text(client.pull_all()) == "a"


def test_a_pause_that_is_over_leaves_a_full_window_full() -> None:
    wire, client, job = following(window=1, coalesce_ms=20)
    wire.stage.tokens(job, "a")
    [frame] = client.pull_all()
    client.send("ack", job_id=ID, cursor=frame["cursor"])
    wire.stage.tokens(job, "b")
    assert (client.pull(), wire.stage.clock.due_ms is not None) == (None, True)
    remark(job)
    [flushed] = client.pull_all()
    assert flushed["type"] == "token"
    wakes = client.wakes
    wire.stage.clock.advance(40)
    assert (client.wakes, client.pull()) == (wakes, None)
    client.send("ack", job_id=ID, cursor=flushed["cursor"])
    assert types(client.pull_all()) == ["narration"]
