"""What a connection asks of jobs: create, follow, resume, cancel, update; every request one reply."""

from __future__ import annotations

import pytest

from tests.jobs.scripted import LIMITS
from tests.protocol.wire import ID, IDS, OTHER, Wire, connected, number, text, types
from worker.jobs.limits.principals import Allowance, Grant, Principal

# ---- create ----------------------------------------------------------------------------------------------------------


def test_a_job_from_create_to_end() -> None:
    wire, client = connected()
    accepted = client.ask("create", job_id=ID, prompt="Hi", ref="1")
    assert accepted == {
        "type": "accepted",
        "job_id": ID,
        "state": "queued",
        "priority": 5,
        "queue": {"position": 1},
        "sse_url": f"/v1/jobs/{ID}/stream",
        "ref": "1",
    }
    wire.stage.run(wire.stage.jobs.get("ann", ID), "Hel", "lo")
    frames = client.pull_all()
    assert types(frames) == [*["narration"] * 3, "token", "narration", "token", "narration", "end"]
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
    wire.stage.prepare(wire.stage.jobs.get("ann", ID))
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
    accepted = again.ask("subscribe", job_id=ID, after=job.log.cursor(4))
    assert (accepted["state"], "reset" in accepted, "replayed" in accepted) == ("running", False, False)
    frames = again.pull_all()
    assert (number(frames[0]["cursor"]), text(frames)) == (5, "bc")


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
    assert accepted["priority"] == 9
    assert wire.stage.broker.updated == [(wire.stage.broker.submitted[0].generation.lease, 9)]


def test_a_priority_above_the_keys_is_lowered_and_the_reply_says_so() -> None:
    wire = Wire()
    grant = Grant(principal=Principal(name="ann", key="ann", allowance=Allowance(priority_max=5)))
    client = wire.knock(key=grant)
    client.ask("auth", token="key")
    replies = [client.ask("create", job_id=IDS[wish], prompt="Hi", priority=wish, channels=[]) for wish in (3, 5, 6, 9)]
    assert [reply["priority"] for reply in replies] == [3, 5, 5, 5]
    assert [work.priority for work in wire.stage.broker.submitted] == [3, 5, 5, 5]
    assert client.ask("create", job_id=IDS[9], prompt="Hi", priority=9, channels=[])["priority"] == 5
    assert client.ask("update", job_id=IDS[3], priority=8)["priority"] == 5
    assert client.ask("update", job_id=IDS[3], priority=2)["priority"] == 2
    assert [priority for _, priority in wire.stage.broker.updated] == [5, 2]
