"""Window and floor together: whatever acks come and however time passes, each event comes once and in order."""

from __future__ import annotations

from typing import TypeAlias

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.protocol.wire import ID, Sent, following, number, remark, text, types
from worker.events import Token


class Reading:
    """One reader with a window and a floor, held to what is promised."""

    def __init__(self, window: int, coalesce_ms: int) -> None:
        self.window, self.coalesce_ms = window, coalesce_ms
        self.wire, self.client, self.job = following(window=window, coalesce_ms=coalesce_ms)
        self.frames: list[Sent] = []
        self.start = self.job.log.tail
        self.unacked: list[str] = []
        self.times_ms: list[float] = []
        # The tail of the log at the last pull that no floor held back: what was there then is sent together.
        self.released = 0

    @property
    def now_ms(self) -> float:
        """The time."""
        return self.wire.stage.clock.monotonic_ms()

    @property
    def reached(self) -> int:
        """The log number of the last frame."""
        return number(self.frames[-1]["cursor"]) if self.frames else self.start

    @property
    def full(self) -> bool:
        """Whether the window has no room."""
        return len(self.unacked) == self.window > 0

    @property
    def paused(self) -> bool:
        """Whether the last frame of tokens is more recent than the floor."""
        return any(self.now_ms < at_ms + self.coalesce_ms for at_ms in self.times_ms[-1:])

    # ---- what is promised --------------------------------------------------------------------------------------------

    def assert_next(self, frame: Sent, before: int) -> None:
        """Check that a frame begins where the last one ended."""
        assert number(frame["cursor"]) == before + frame.get("n", 1)

    def assert_window(self) -> None:
        """Check that no more frames than asked for are in flight."""
        assert not self.window or len(self.unacked) <= self.window

    def assert_floor(self, frame: Sent, before: int, paused: bool) -> None:
        """Check that tokens within the pause were released, or come before something urgent."""
        following_records = self.job.log.records[self.reached : self.reached + 1]
        flushed = any(not isinstance(record.event, Token) for record in following_records)
        assert frame["type"] != "token" or not paused or before < self.released or flushed

    def assert_held(self) -> None:
        """Check that events wait for a reason: for an ack, or for a time at which somebody is called."""
        waits = self.reached < self.job.log.tail
        assert not waits or self.full or self.wire.stage.clock.due_ms is not None

    # ---- what happens ------------------------------------------------------------------------------------------------

    def produce(self, count: int) -> None:
        """Let the job have some tokens."""
        for _ in range(count):
            self.wire.stage.tokens(self.job, f"{self.job.log.tail} ")

    def pass_ms(self, ms: int) -> None:
        """Let time pass."""
        self.wire.stage.clock.advance(ms)

    def pull(self) -> bool:
        """Read a frame and check it; return whether there was one."""
        paused, before = self.paused, self.reached
        if not paused and not self.full:
            self.released = self.job.log.tail
        frame = self.client.pull()
        if frame is None:
            self.assert_held()
            return False
        self.frames.append(frame)
        if self.window:
            self.unacked.append(frame["cursor"])
        self.assert_next(frame, before)
        self.assert_window()
        self.assert_floor(frame, before, paused)
        if frame["type"] == "token":
            self.times_ms.append(self.now_ms)
        return True

    def ack(self, which: int) -> None:
        """Ack one of the frames, an old one perhaps."""
        if self.frames and self.window:
            cursor = self.frames[which % len(self.frames)]["cursor"]
            self.client.send("ack", job_id=ID, cursor=cursor)
            if cursor in self.unacked:
                del self.unacked[: self.unacked.index(cursor) + 1]

    def complete(self) -> None:
        """Check that everything comes in the end, as it was written."""
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
    | st.tuples(st.just("remark"), st.just(0)),
    max_size=60,
)


Steps: TypeAlias = list[tuple[str, int]]

EARLIER_BEAT: Steps = [
    ("produce", 1), ("pull", 1), ("produce", 1), ("pull", 1), ("pass", 19), ("remark", 0), ("pull", 3), ("pass", 60),
]  # fmt: skip
"""The beat of an earlier pause comes when nothing is pending: what it was for went out before something urgent."""


def act(reading: Reading, what: str, amount: int) -> None:
    """Let something happen besides a pull."""
    match what:
        case "produce":
            reading.produce(amount)
        case "pass":
            reading.pass_ms(amount)
        case "ack":
            reading.ack(amount)
        case "remark":
            remark(reading.job)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0, 1, 2, 7]), st.sampled_from([0, 1, 20, 50]), STEPS)
@example(1, 20, [("produce", 1), ("pull", 1), ("produce", 1), ("pull", 2), ("ack", -1), ("remark", 0), ("pull", 3)])
@example(0, 20, EARLIER_BEAT)
def test_every_event_comes_once_and_in_order(window: int, coalesce_ms: int, steps: Steps) -> None:
    reading = Reading(window, coalesce_ms)
    for what, amount in steps:
        act(reading, what, amount)
        for _ in range(amount if what == "pull" else 0):
            reading.pull()
    reading.complete()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0, 1, 7]), st.sampled_from([0, 20]), STEPS)
def test_an_idle_connection_is_woken_for_each_frame(window: int, coalesce_ms: int, steps: Steps) -> None:
    """A transport pulls only after a wake: what comes without one would never be sent."""
    reading = Reading(window, coalesce_ms)
    woken = -1
    for what, amount in steps:
        act(reading, what, amount)
        if what != "pull":
            continue
        if reading.client.wakes == woken:
            assert not reading.pull(), "nobody would have asked for this frame"
        while reading.client.wakes != woken:
            woken = reading.client.wakes
            while reading.pull():
                pass
