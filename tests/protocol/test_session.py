"""One connection: signs of life, turns, abuse, and whatever is sent; nothing is unbounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.wire import ID, IDS, connected, number, parsed, types
from worker.protocol.closing import CloseCode, CloseConnection
from worker.protocol.session import BAD_FRAMES_MAX, FEATURES

# ---- greeting and signs of life --------------------------------------------------------------------------------------


def test_hello_comes_first_and_tells_the_limits() -> None:
    wire, client = connected(
        frame_bytes_max=2048,
        jobs_per_account_max=3,
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


def test_pings_beyond_the_rate_close_the_connection() -> None:
    wire, client = connected(control_frames_per_s_max=5)
    for _ in range(5):
        assert client.ask("ping") == {"type": "pong"}
    wire.stage.clock.advance(200)
    assert client.ask("ping") == {"type": "pong"}
    with pytest.raises(CloseConnection) as caught:
        client.send("ping")
    assert caught.value.code == CloseCode.ABUSE
    assert "5 pings per second" in caught.value.reason


def test_a_heartbeat_is_a_pong_unless_something_waits_anyway() -> None:
    wire, client = connected()
    client.session.heartbeat()
    client.session.heartbeat()
    assert client.pull_all() == [{"type": "pong"}]
    client.send("create", job_id=ID, prompt="Hi")
    client.session.heartbeat()
    assert types(client.pull_all()) == ["accepted", "narration"]
    wire.stage.prepare(wire.stage.jobs.get("ann", ID))
    client.session.heartbeat()
    assert types(client.pull_all()) == ["narration"]


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
    assert code == 1000 or fix_first or code in (1001, 1008, 1009, 1011, 1012, 4503, 4504)


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
