"""Who speaks on a connection: keys that come as frames, in time or not, and keys that expire. And goodbyes."""

from __future__ import annotations

import pytest

from tests.protocol.wire import ID, Client, Wire, types
from worker.jobs.limits.principals import Allowance, Grant, Principal
from worker.protocol.closing import CloseConnection
from worker.protocol.session import BAD_FRAMES_MAX

ANN = Principal(name="ann")
FOREVER = Grant(principal=ANN)


def knocking(expires_in_ms: float | None = None) -> tuple[Wire, Client]:
    """Return a connection that has said hello to somebody unknown. "key" is Ann's key."""
    wire = Wire(auth_timeout_s=5)
    now_ms = wire.stage.clock.monotonic_ms()
    expires_at_ms = None if expires_in_ms is None else now_ms + expires_in_ms
    client = wire.knock(
        key=Grant(principal=ANN, expires_at_ms=expires_at_ms),
        longer=Grant(principal=ANN, expires_at_ms=now_ms + 90_000),
        bob=Grant(principal=Principal(name="bob")),
    )
    client.session.greet(now_ms)
    [hello] = client.pull_all()
    assert (hello["auth"], "expires_in" in hello, hello["limits"]["auth_timeout_s"]) == ("required", False, 5)
    return wire, client


def closes(client: Client, kind: str, **fields: object) -> int:
    """Send a frame that ends the connection, and return the code."""
    with pytest.raises(CloseConnection) as close:
        client.send(kind, **fields)
    assert close.value.reason
    return close.value.code


def test_a_key_in_the_first_frame_opens_the_connection() -> None:
    wire, client = knocking()
    hello = client.ask("auth", token="key", ref="r")
    assert (hello["type"], hello["auth"], hello["ref"]) == ("hello", "ok", "r")
    assert "expires_in" not in hello
    assert client.session.grant == FOREVER
    assert client.ask("create", job_id=ID, prompt="Hi")["type"] == "accepted"
    assert wire.stage.jobs.get("ann", ID).watchers == 1
    wire.stage.clock.advance(10**9)
    client.session.check_time(wire.stage.clock.monotonic_ms())


def test_hello_tells_how_many_jobs_a_key_may_have() -> None:
    wire = Wire(jobs_per_account_max=7)
    few = Grant(principal=Principal(name="ann", allowance=Allowance(jobs_max=3)))
    client = wire.knock(key=few)
    client.session.greet(0)
    [unknown] = client.pull_all()
    known = client.ask("auth", token="key")
    assert (unknown["limits"]["max_jobs"], known["limits"]["max_jobs"]) == (7, 3)


def test_everything_may_be_sent_at_once_after_the_key() -> None:
    _, client = knocking()
    client.send("auth", token="key")
    client.send("create", job_id=ID, prompt="Hi")
    assert types(client.pull_all()) == ["hello", "accepted", "narration"]


def test_before_the_key_nothing_is_answered() -> None:
    wire, client = knocking()
    wire.stage.create(ID)
    for kind, fields in (
        ("create", {"prompt": "Hi"}),
        ("subscribe", {"job_id": ID}),
        ("cancel", {"job_id": ID}),
        ("unsubscribe", {"job_id": ID}),
        ("ack", {"job_id": ID, "cursor": "k3f9-1"}),
        ("ping", {}),
    ):
        error = client.ask(kind, ref="r", **fields)
        assert (error["type"], error["error"]["code"], error["ref"]) == ("error", "unauthorized", "r")
    assert len(wire.stage.jobs.list("ann")) == 1
    assert wire.stage.jobs.get("ann", ID).state == "queued"


def test_frames_before_the_key_count_as_bad() -> None:
    _, client = knocking()
    for _ in range(BAD_FRAMES_MAX - 1):
        client.send("ping")
    assert closes(client, "ping") == 4400


def test_a_wrong_first_key_ends_the_connection() -> None:
    _, client = knocking()
    assert closes(client, "auth", token="wrong") == 4401
    assert client.session.grant is None


def test_a_client_that_shows_no_key_in_time_is_sent_away() -> None:
    wire, client = knocking()
    wire.stage.clock.advance(4999)
    client.session.check_time(wire.stage.clock.monotonic_ms())
    wire.stage.clock.advance(1)
    with pytest.raises(CloseConnection) as close:
        client.session.check_time(wire.stage.clock.monotonic_ms())
    assert close.value.code == 4408
    # Before the worker has looked at the time, a frame makes it do so.
    assert closes(client, "auth", token="key") == 4408


def test_hello_tells_when_a_key_expires_and_then_it_does() -> None:
    wire, client = knocking(expires_in_ms=60_900)
    assert client.ask("auth", token="key")["expires_in"] == 60
    wire.stage.clock.advance(60_899)
    assert client.ask("ping")["type"] == "pong"
    wire.stage.clock.advance(1)
    assert closes(client, "ping") == 4401


def test_a_connection_with_a_key_is_told_at_once() -> None:
    wire = Wire()
    now_ms = wire.stage.clock.monotonic_ms()
    client = Client(wire, Grant(principal=ANN, expires_at_ms=now_ms + 5_000))
    client.session.greet(now_ms)
    [hello] = client.pull_all()
    assert (hello["auth"], hello["expires_in"]) == ("ok", 5)


def test_a_new_key_prolongs_the_connection_in_silence() -> None:
    wire, client = knocking(expires_in_ms=60_000)
    client.send("auth", token="key")
    client.send("create", job_id=ID, prompt="Hi")
    client.pull_all()
    client.send("auth", token="longer", ref="r")
    assert client.pull_all() == []
    wire.stage.clock.advance(89_999)
    assert client.ask("ping")["type"] == "pong"
    wire.stage.prepare(wire.stage.jobs.get("ann", ID))
    assert types(client.pull_all()) == ["narration"]
    wire.stage.clock.advance(1)
    assert closes(client, "ping") == 4401


@pytest.mark.parametrize(("token", "code"), [("wrong", "unauthorized"), ("bob", "forbidden")])
def test_a_later_key_that_is_wrong_changes_nothing(token: str, code: str) -> None:
    wire, client = knocking(expires_in_ms=60_000)
    client.send("auth", token="key")
    client.pull_all()
    error = client.ask("auth", token=token, ref="r")
    assert (error["error"]["code"], error["ref"]) == (code, "r")
    assert client.ask("create", job_id=ID, prompt="Hi")["type"] == "accepted"
    assert wire.stage.jobs.list("bob") == []


def test_keys_cannot_be_guessed_on_an_open_connection() -> None:
    _, client = knocking()
    client.send("auth", token="key")
    for number in range(BAD_FRAMES_MAX - 1):
        client.send("auth", token=f"guess {number}")
    assert closes(client, "auth", token="another") == 4400


# ---- goodbye ---------------------------------------------------------------------------------------------------------


def test_goaway_is_said_once_and_nothing_ends() -> None:
    wire, client = knocking()
    client.send("auth", token="key")
    client.send("create", job_id=ID, prompt="Hi")
    client.pull_all()
    for _ in range(3):
        client.session.goaway()
    [goaway] = client.pull_all()
    assert (goaway["type"], goaway["reason"]) == ("goaway", "shutdown")
    assert goaway["retry_ms"] > 0
    wire.stage.run(wire.stage.jobs.get("ann", ID), "a")
    assert types(client.pull_all())[-1] == "end"


# ---- counting --------------------------------------------------------------------------------------------------------


def test_what_is_delivered_and_refused_is_counted() -> None:
    wire = Wire()
    job = wire.stage.create(ID)
    wire.stage.start(job)
    tally, client = wire.tally, wire.connect()
    client.send("subscribe", job_id=ID)
    client.pull_all()
    assert (tally.frames, tally.events, tally.resumes, tally.resets) == (3, 3, 0, 0)
    wire.stage.tokens(job, "a", "b", "c")
    frames = client.pull_all()
    assert types(frames) == ["token", "narration", "token"]
    assert (tally.frames, tally.events) == (6, 7)
    client.send("subscribe", job_id=ID, after=frames[0]["cursor"])
    assert (tally.resumes, tally.resets) == (1, 0)
    client.send("subscribe", job_id=ID, after="gone-1")
    assert (tally.resumes, tally.resets) == (1, 1)
    client.send("cancel", job_id="not-a-job-of-ours")
    client.send("ping", t=[])
    client.send("ping", t=[])
    assert tally.refusals == {"job_not_found": 1, "invalid_params": 2}


# ---- keys that change ------------------------------------------------------------------------------------------------


def test_a_grant_is_renewed_or_ends_the_connection() -> None:
    _, client = knocking()
    client.ask("auth", token="key")
    changed = Grant(principal=Principal(name="ann", allowance=Allowance(jobs_max=3)))
    client.session.renew(changed)
    assert client.session.grant == changed
    with pytest.raises(CloseConnection) as close:
        client.session.renew(None)
    assert (close.value.code, close.value.reason) == (4401, "This key is no longer valid.")
