"""One connection: every request one reply, subscriptions in turn, nothing unbounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.jobs.scripted import LIMITS
from tests.protocol.wire import ID, OTHER, Client, Wire, number, parsed, text, types
from worker.protocol.closing import CloseCode, CloseConnection
from worker.protocol.session import BAD_FRAMES_MAX, FEATURES

IDS = [f"job-number-{number_:08d}" for number_ in range(64)]


def connected(**settings_: Any) -> tuple[Wire, Client]:
    """Return a wire and one connection."""
    wire = Wire(**settings_)
    return wire, wire.connect()


# ---- greeting and signs of life --------------------------------------------------------------------------------------


def test_hello_comes_first_and_tells_the_limits() -> None:
    wire, client = connected(
        frame_bytes_max=2048,
        jobs_per_principal_max=3,
        queue_jobs_max=5,
        retention_s=7,
        orphan_ttl_s=8,
        window_frames_max=9,
        coalesce_ms_max=11,
        auth_timeout_s=12,
    )
    client.session.greet(wire.stage.clock.monotonic_ms())
    client.send("ping")
    hello, pong = client.pull_all()
    assert (hello["type"], hello["protocol"], hello["auth"], pong) == ("hello", "jobwire.v1", "ok", {"type": "pong"})
    assert hello["server"].startswith("jobwire/")
    assert hello["features"] == list(FEATURES)
    limits = hello["limits"]
    assert (limits["max_frame_bytes"], limits["max_jobs"], limits["max_queue"]) == (2048, 3, 5)
    assert (limits["retention_s"], limits["orphan_ttl_s"]) == (7, 8)
    assert (limits["max_window"], limits["max_coalesce_ms"], limits["auth_timeout_s"]) == (9, 11, 12)


@pytest.mark.parametrize("t", [None, 0, 1.5, "x", 10**15])
def test_a_ping_comes_back(t: object) -> None:
    _, client = connected()
    expected = {"type": "pong", "ref": "r"} if t is None else {"type": "pong", "t": t, "ref": "r"}
    assert client.ask("ping", t=t, ref="r") == expected


def test_a_heartbeat_is_a_pong_unless_something_waits_anyway() -> None:
    wire, client = connected()
    client.session.heartbeat()
    client.session.heartbeat()
    assert client.pull_all() == [{"type": "pong"}]
    client.send("create", job_id=ID, prompt="Hi")
    client.session.heartbeat()
    assert types(client.pull_all()) == ["accepted", "narration"]
    wire.stage.start(wire.stage.jobs.get("ann", ID))
    client.session.heartbeat()
    assert types(client.pull_all()) == ["narration"]


# ---- create ----------------------------------------------------------------------------------------------------------


def test_a_job_from_create_to_end() -> None:
    wire, client = connected()
    accepted = client.ask("create", job_id=ID, prompt="Hi", ref="1")
    assert accepted == {
        "type": "accepted",
        "job_id": ID,
        "state": "queued",
        "queue": {"position": 1},
        "sse_url": f"/v1/jobs/{ID}/stream",
        "ref": "1",
    }
    wire.stage.run(wire.stage.jobs.get("ann", ID), "Hel", "lo")
    frames = client.pull_all()
    assert types(frames) == ["narration", "narration", "token", "narration", "token", "narration", "end"]
    assert text(frames) == "Hello"
    assert {frame["job_id"] for frame in frames} == {ID}
    assert client.pull() is None


def test_the_reply_comes_before_the_first_event_of_its_job() -> None:
    wire, client = connected()
    for job_id in IDS[:5]:
        client.send("create", job_id=job_id, prompt="Hi")
    wire.stage.run(wire.stage.jobs.get("ann", IDS[0]), "a")
    frames = client.pull_all()
    for job_id in IDS[:5]:
        assert types(frame for frame in frames if frame["job_id"] == job_id)[0] == "accepted"


def test_a_job_without_an_id_gets_one() -> None:
    _, client = connected()
    accepted = client.ask("create", prompt="Hi")
    assert accepted["job_id"].startswith("job-")
    assert client.pull_all()[0]["job_id"] == accepted["job_id"]


def test_a_repeated_create_attaches_from_the_start() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    wire.stage.run(wire.stage.jobs.get("ann", ID), "a")
    before = client.pull_all()
    again = client.ask("create", job_id=ID, prompt="Hi", ref="2")
    assert (again["replayed"], again["state"], "reset" in again) == (True, "ended", False)
    assert text(client.pull_all()) == text(before) == "a"
    assert len(wire.stage.broker.submitted) == 1


def test_another_body_under_a_known_id_is_an_error_and_changes_nothing() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    client.pull_all()
    error = client.ask("create", job_id=ID, prompt="Ho", ref="2")
    assert (error["type"], error["error"]["code"], error["job_id"], error["ref"]) == (
        "error",
        "idempotency_mismatch",
        ID,
        "2",
    )
    wire.stage.start(wire.stage.jobs.get("ann", ID))
    assert types(client.pull_all()) == ["narration"]


@pytest.mark.parametrize(
    ("fields", "code", "pointers"),
    [
        ({"prompt": ""}, "invalid_params", ["/prompt"]),
        ({"prompt": "Hi", "temperature": 9, "n": 0}, "invalid_params", ["/temperature", "/n"]),
        ({"prompt": "Hi", "window": LIMITS.window_frames_max + 1}, "invalid_params", ["/window"]),
        ({"prompt": "Hi", "coalesce_ms": LIMITS.coalesce_ms_max + 1}, "invalid_params", ["/coalesce_ms"]),
        ({"prompt": "Hi", "operation": "frobnicate"}, "unsupported_operation", ["/operation"]),
        ({"prompt": "Hi", "after": "k3f9-1"}, "job_lost", []),
        ({"prompt": "Hi", "channels": ["x"]}, "invalid_params", ["/channels/0"]),
    ],
)
def test_a_create_that_cannot_be_is_one_error(fields: dict[str, object], code: str, pointers: list[str]) -> None:
    wire, client = connected()
    error = client.ask("create", job_id=ID, ref="1", **fields)
    assert (error["type"], error["error"]["code"], error["ref"], error["job_id"]) == ("error", code, "1", ID)
    assert [item["pointer"] for item in error["error"].get("errors", [])] == pointers
    assert client.pull_all() == []
    assert wire.stage.jobs.list("ann") == []


def test_a_resume_needs_to_say_of_which_job() -> None:
    _, client = connected()
    error = client.ask("create", prompt="Hi", after="k3f9-1")
    assert error["error"]["errors"][0]["pointer"] == "/after"


def test_an_unknown_operation_names_those_there_are() -> None:
    _, client = connected()
    detail = client.ask("create", operation="frobnicate")["error"]["detail"]
    assert "infer, status, worker_check" in detail


def test_a_full_queue_says_when_to_come_back() -> None:
    _, client = connected(queue_jobs_max=1)
    client.send("create", prompt="Hi")
    client.pull_all()
    error = client.ask("create", prompt="Ho")
    assert (error["error"]["code"], error["error"]["status"], error["error"]["retriable"]) == ("queue_full", 429, True)
    assert error["error"]["retry_after_ms"] >= 1000


@pytest.mark.parametrize("operation", ["status", "worker_check"])
def test_operations_without_an_engine_stream_like_any_other(operation: str) -> None:
    _, client = connected()
    accepted = client.ask("create", operation=operation)
    assert accepted["state"] == "ended"
    assert "over" not in accepted
    frames = client.pull_all()
    assert types(frames)[-1] == "end"
    assert frames[-1]["status"] == "completed"
    assert text(frames)


# ---- subscribe, unsubscribe, resume ----------------------------------------------------------------------------------


def test_two_connections_follow_one_job() -> None:
    wire, first = connected()
    first.send("create", job_id=ID, prompt="Hi")
    second = wire.connect()
    wire.stage.start(wire.stage.jobs.get("ann", ID))
    assert second.ask("subscribe", job_id=ID)["state"] == "running"
    wire.stage.tokens(wire.stage.jobs.get("ann", ID), "a", "b")
    wire.stage.finish(wire.stage.jobs.get("ann", ID))
    assert first.pull_all()[1:] == second.pull_all()


def test_a_subscriber_goes_on_from_its_cursor() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    job = wire.stage.jobs.get("ann", ID)
    wire.stage.start(job)
    wire.stage.tokens(job, "a", "b", "c")
    client.session.close()
    again = wire.connect()
    accepted = again.ask("subscribe", job_id=ID, after=job.log.cursor(3))
    assert (accepted["state"], "reset" in accepted, "replayed" in accepted) == ("running", False, False)
    frames = again.pull_all()
    assert (number(frames[0]["cursor"]), text(frames)) == (4, "bc")


@pytest.mark.parametrize("kind", ["create", "subscribe"])
def test_a_cursor_of_another_log_resets(kind: str) -> None:
    wire, client = connected()
    job = wire.stage.run(wire.stage.create(ID), "a")
    body = {"prompt": "Hi"} if kind == "create" else {}
    for cursor in ("gone-2", job.log.cursor(99)):
        assert client.ask(kind, job_id=ID, after=cursor, **body)["reset"] is True
        frames = client.pull_all()
        assert (number(frames[0]["cursor"]), text(frames)) == (1, "a")


@pytest.mark.parametrize("kind", ["create", "subscribe"])
def test_after_the_end_nothing_follows(kind: str) -> None:
    wire, client = connected()
    job = wire.stage.run(wire.stage.create(ID), "a")
    body = {"prompt": "Hi"} if kind == "create" else {}
    accepted = client.ask(kind, job_id=ID, after=job.log.cursor(job.log.tail), **body)
    assert (accepted["state"], accepted["over"], client.pull_all(), job.watchers) == ("ended", True, [], 0)


def test_subscribing_again_moves_the_position() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    job = wire.stage.jobs.get("ann", ID)
    wire.stage.start(job)
    wire.stage.tokens(job, "a")
    assert text(client.pull_all()) == "a"
    client.send("subscribe", job_id=ID)
    wire.stage.tokens(job, "b")
    frames = client.pull_all()
    assert types(frames)[0] == "accepted"
    assert text(frames) == "ab"
    assert job.watchers == 1


def test_an_unknown_job_cannot_be_followed_cancelled_or_moved() -> None:
    wire, client = connected()
    wire.stage.create(OTHER, "bob")
    for job_id in (ID, OTHER):
        for kind, fields in (("subscribe", {}), ("cancel", {}), ("update", {"priority": 1})):
            error = client.ask(kind, job_id=job_id, **fields)
            assert (error["error"]["code"], error["error"]["status"]) == ("job_not_found", 404)


def test_unsubscribe_is_silent_and_stops_the_events_but_not_the_job() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    client.send("create", job_id=OTHER, prompt="Hi")
    client.send("unsubscribe", job_id=ID)
    frames = client.pull_all()
    assert [(frame["type"], frame["job_id"]) for frame in frames] == [
        ("accepted", ID),
        ("accepted", OTHER),
        ("narration", OTHER),
    ]
    job = wire.stage.run(wire.stage.jobs.get("ann", ID), "a")
    assert (client.pull_all(), job.state, job.watchers) == ([], "completed", 0)
    client.send("unsubscribe", job_id=ID)
    client.send("unsubscribe", job_id="never-heard-of-it")
    assert client.pull_all() == []


def test_channels_of_a_subscription() -> None:
    wire, client = connected()
    wire.stage.run(wire.stage.create(ID), "a", "b")
    client.send("subscribe", job_id=ID, channels=["token"])
    assert types(client.pull_all()) == ["accepted", "token", "token", "end"]
    client.send("create", job_id=OTHER, prompt="Hi", channels=["narration"])
    wire.stage.run(wire.stage.jobs.get("ann", OTHER), "a", "b")
    assert set(types(client.pull_all())) == {"accepted", "narration", "end"}


def test_the_subscriptions_of_a_connection_are_bounded_and_ended_jobs_do_not_count() -> None:
    wire, client = connected(subscriptions_per_connection_max=2)
    for job_id in IDS[:2]:
        client.send("create", job_id=job_id, prompt="Hi")
    client.pull_all()
    error = client.ask("create", job_id=IDS[2], prompt="Hi")
    assert (error["error"]["code"], "2 jobs" in error["error"]["detail"]) == ("too_many_jobs", True)
    assert len(wire.stage.jobs.list("ann")) == 2
    wire.stage.create(OTHER)
    assert client.ask("subscribe", job_id=OTHER)["error"]["code"] == "too_many_jobs"
    assert client.ask("subscribe", job_id=IDS[0])["type"] == "accepted"
    wire.stage.run(wire.stage.jobs.get("ann", IDS[1]), "a")
    client.pull_all()
    assert client.ask("subscribe", job_id=OTHER)["type"] == "accepted"


def test_close_stops_following_everything() -> None:
    wire, client = connected()
    for job_id in IDS[:3]:
        client.send("create", job_id=job_id, prompt="Hi")
    client.session.close()
    jobs = wire.stage.jobs.list("ann")
    assert [job.watchers for job in jobs] == [0, 0, 0]
    wakes = client.wakes
    wire.stage.run(jobs[0], "a")
    assert (client.wakes, client.pull_all()) == (wakes, [])
    assert [job.state for job in jobs] == ["completed", "queued", "queued"]


# ---- cancel, update --------------------------------------------------------------------------------------------------


def test_a_cancel_is_confirmed_and_then_the_job_ends() -> None:
    _, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    client.send("cancel", job_id=ID, ref="stop")
    frames = client.pull_all()
    assert types(frames) == ["accepted", "accepted", "narration", "end"]
    assert (frames[1]["ref"], frames[1]["state"], frames[3]["status"], frames[3]["reason"]) == (
        "stop",
        "ended",
        "cancelled",
        "client",
    )
    assert client.ask("cancel", job_id=ID)["type"] == "accepted"
    assert client.pull_all() == []


def test_a_cancel_acts_although_the_client_reads_nothing() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    job = wire.stage.jobs.get("ann", ID)
    wire.stage.start(job)
    wire.stage.tokens(job, *["word "] * 100)
    client.send("cancel", job_id=ID)
    assert job.state == "cancelled"
    assert wire.stage.broker.cancelled == [wire.stage.broker.submitted[0].generation.lease]


def test_an_update_reaches_the_queue() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    client.pull_all()
    accepted = client.ask("update", job_id=ID, priority=9)
    assert (accepted["type"], accepted["queue"]) == ("accepted", {"position": 1})
    assert wire.stage.broker.updated == [(wire.stage.broker.submitted[0].generation.lease, 9)]


# ---- turns -----------------------------------------------------------------------------------------------------------


def test_subscriptions_take_turns_one_frame_each() -> None:
    wire, client = connected()
    chatty, quiet = IDS[0], IDS[1]
    for job_id in (chatty, quiet):
        client.send("create", job_id=job_id, prompt="Hi", n=2)
        wire.stage.start(wire.stage.jobs.get("ann", job_id))
    client.pull_all()
    for index in [0, 1] * 50:
        wire.stage.tokens(wire.stage.jobs.get("ann", chatty), "x", index=index)
    wire.stage.tokens(wire.stage.jobs.get("ann", quiet), "y")
    first, second = client.pull(), client.pull()
    assert first is not None and second is not None
    assert (first["job_id"], second["job_id"]) == (chatty, quiet)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 3)), max_size=60), st.integers(1, 12))
def test_nobody_waits_longer_than_one_round(produced: list[tuple[int, int]], pulls: int) -> None:
    wire, client = connected()
    jobs = []
    for job_id in IDS[:8]:
        client.send("create", job_id=job_id, prompt="Hi", n=3)
        jobs.append(wire.stage.jobs.get("ann", job_id))
        wire.stage.start(jobs[-1])
    client.pull_all()
    waiting: dict[str, int] = {}
    for step, (which, count) in enumerate(produced):
        for index in range(count):
            wire.stage.tokens(jobs[which], "w", index=index)
        waiting.setdefault(jobs[which].id, 0)
        if step % pulls == 0 and (frame := client.pull()) is not None:
            turn = frame["job_id"]
            assert turn in waiting
            assert waiting[turn] <= len(IDS[:8])
            waiting = {job_id: since + 1 for job_id, since in waiting.items()}
            job = next(job for job in jobs if job.id == turn)
            if number(frame["cursor"]) == job.log.tail:
                del waiting[turn]
            else:
                waiting[turn] = 0


def test_a_job_stands_in_the_line_once_however_much_it_says() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    job = wire.stage.jobs.get("ann", ID)
    wire.stage.start(job)
    client.pull_all()
    wakes = client.wakes
    wire.stage.tokens(job, *["x"] * 100)
    assert len(client.session._subscriptions._ready) == 1
    assert client.wakes == wakes + 1
    assert types(client.pull_all()) == ["token", "narration", "token"]


def test_every_append_to_an_idle_connection_wakes_it() -> None:
    wire, client = connected()
    client.send("create", job_id=ID, prompt="Hi")
    job = wire.stage.jobs.get("ann", ID)
    wire.stage.start(job)
    for _ in range(10):
        client.pull_all()
        wakes = client.wakes
        wire.stage.tokens(job, "x")
        assert client.wakes > wakes


# ---- abuse -----------------------------------------------------------------------------------------------------------


def test_a_client_that_reads_no_replies_is_cut_off() -> None:
    _, client = connected(outbox_replies_max=10)
    for _ in range(10):
        client.send("ping")
    with pytest.raises(CloseConnection) as close:
        client.send("ping")
    assert close.value.code == 4400
    assert len(client.session._outbox) == 10


def test_a_bad_frame_costs_an_error_and_not_the_connection() -> None:
    _, client = connected()
    for bad in ("{", "[]", '{"type":"frobnicate","ref":"r","job_id":"j"}', b"\x00\x01", "x" * (2 << 20)):
        client.send_text(bad)
    frames = client.pull_all()
    codes = [frame["error"]["code"] for frame in frames]
    assert codes == ["bad_frame", "bad_frame", "bad_frame", "unsupported_media_type", "frame_too_large"]
    assert (frames[2]["ref"], frames[2]["job_id"]) == ("r", "j")
    assert client.ask("ping") == {"type": "pong"}


def test_ten_bad_frames_within_ten_seconds_end_the_connection() -> None:
    wire, client = connected()
    for _ in range(BAD_FRAMES_MAX - 1):
        client.send_text("{")
        wire.stage.clock.advance(1111)
    with pytest.raises(CloseConnection) as close:
        client.send_text("{")
    assert close.value.code == 4400


def test_bad_frames_that_come_slowly_are_borne_with() -> None:
    wire, client = connected()
    for _ in range(50):
        client.send_text("{")
        wire.stage.clock.advance(1112)
    assert types(client.pull_all()) == ["error"] * 50


def test_wrong_requests_are_no_bad_frames() -> None:
    _, client = connected()
    for _ in range(50):
        client.send("create", prompt="")
    assert types(client.pull_all()) == ["error"] * 50


def test_what_a_bad_frame_calls_itself_is_echoed_only_if_it_is_short_text() -> None:
    _, client = connected()
    client.send_text(json.dumps({"type": "x", "ref": "r" * 300, "job_id": 7}))
    [error] = client.pull_all()
    assert set(error) == {"type", "error"}


def test_the_reason_of_a_close_fits_its_frame() -> None:
    close = CloseConnection(CloseCode.ABUSE, "ä" * 100)
    assert len(close.reason.encode()) <= 123
    assert close.reason == "ä" * 61


@pytest.mark.parametrize("code", list(CloseCode))
def test_close_codes_say_what_to_do(code: CloseCode) -> None:
    fix_first = code in (4400, 4401, 4403, 4406, 4408)
    assert (4400 <= code < 4500) == fix_first
    assert code == 1000 or fix_first or code in (1001, 1009, 1011, 1012, 4503, 4504)


# ---- whatever is sent ------------------------------------------------------------------------------------------------

REQUESTS = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["cancel", "subscribe", "unsubscribe"]), "job_id": st.sampled_from(IDS[:3])}
    ),
    st.fixed_dictionaries(
        {"type": st.just("create"), "job_id": st.sampled_from(IDS[:3]), "prompt": st.sampled_from(["Hi", "Ho", ""])}
    ),
    st.fixed_dictionaries(
        {"type": st.just("update"), "job_id": st.sampled_from(IDS[:3]), "priority": st.integers(-1, 10)}
    ),
    st.just({"type": "ping"}),
    st.just({"type": "nonsense"}),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(REQUESTS, max_size=9))
def test_every_request_has_exactly_one_reply(requests: list[dict[str, object]]) -> None:
    _, client = connected()
    for index, request in enumerate(requests):
        client.send_text(json.dumps({**request, "ref": str(index)}))
        replies = [reply for reply in map(parsed, client.session._outbox) if reply.get("ref") == str(index)]
        silent = request["type"] == "unsubscribe"
        assert len(replies) == (0 if silent else 1)
    assert {frame["type"] for frame in client.pull_all()} <= {"accepted", "error", "pong", "narration", "end"}
