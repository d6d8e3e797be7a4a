"""Exactly once, through every cut: a client that follows the five-minute version against a server that loses things.

The client knows its last cursor and its text. Whatever happens (produce, engine death, finish, connect over WebSocket
or SSE with any window and floor, receive some frames, ack, wait, drop, lose all state, run again for somebody else),
its text is what the log says up to its cursor. Three broken servers show that the machine would notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.protocol.wire import ID, Client, Sent, Wire
from worker.errors import JobNotFound
from worker.events import Token
from worker.jobs.job import Job
from worker.jobs.log import JobLog
from worker.protocol import sse

BODY = {"prompt": "Tell me a story", "seed": 1}
FLOORS = st.sampled_from([0, 20])


class ResumeMachine(RuleBasedStateMachine):
    """One client, one job id, one server that may forget everything."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire(engine_deaths_per_job_max=1000)
        self.logs: dict[str, JobLog] = {}
        self.words = 0
        # The client:
        self.after: str | None = None
        self.out = ""
        self.ends = 0
        self.socket: Client | None = None
        self.events: sse.SseReader | None = None
        self.window = 0
        self.to_ack: str | None = None

    # ---- the server --------------------------------------------------------------------------------------------------

    @property
    def job(self) -> Job | None:
        """The job as the server knows it now."""
        try:
            job = self.wire.stage.jobs.get("ann", ID)
        except JobNotFound:
            return None
        self.logs[job.log.epoch] = job.log
        return job

    def running(self) -> Job | None:
        """Return the job, admitted, if there is one that can produce."""
        job = self.job
        if job is None or job.ended:
            return None
        if job.state == "queued":
            self.wire.stage.start(job)
        return job

    @rule(count=st.integers(1, 4))
    def produce(self, count: int) -> None:
        if (job := self.running()) is not None:
            for _ in range(count):
                # Every word is another, so that any mistake shows.
                self.words += 1
                self.wire.stage.tokens(job, f"{self.words} ")

    @rule()
    def kill_the_engine(self) -> None:
        self.wire.stage.jobs.on_lost("killed")

    @rule()
    def finish(self) -> None:
        if (job := self.running()) is not None:
            self.wire.stage.finish(job)

    @rule()
    def lose_state(self) -> None:
        self.drop()
        self.wire.stage.new_jobs()

    @rule(count=st.integers(1, 9))
    def run_again_for_somebody_else(self, count: int) -> None:
        """The state is lost and the same job created by another connection: our cursor is of a log that is gone."""
        self.lose_state()
        other = self.wire.connect()
        other.send("create", job_id=ID, **BODY)
        other.session.close()
        self.produce(count)

    # ---- the client --------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self.socket is not None or self.events is not None

    @precondition(lambda self: not self.connected)
    @rule(kind=st.sampled_from(["create", "subscribe"]), window=st.sampled_from([0, 1, 4]), coalesce_ms=FLOORS)
    def connect_websocket(self, kind: str, window: int = 0, coalesce_ms: int = 0) -> None:
        self.socket, self.window, self.to_ack = self.wire.connect(), window, None
        body = BODY if kind == "create" else {}
        after = {} if self.after is None else {"after": self.after}
        delivery = {"window": window, "coalesce_ms": coalesce_ms}
        self.take(self.socket.ask(kind, job_id=ID, **body, **after, **delivery))

    @precondition(lambda self: not self.connected)
    @rule(coalesce_ms=FLOORS)
    def connect_sse(self, coalesce_ms: int) -> None:
        job = self.job
        if job is None:
            self.start_over()
            return
        start = sse.start(job, self.after, None)
        if start.ended:
            # 204: nothing to come, and the end was seen.
            assert self.ends == 1
            return
        stream = self.wire.source.reader(job, start.after)
        self.events = sse.SseReader(stream, coalesce_ms, lambda: None, self.wire.stage.clock)
        self.wire.stage.jobs.watch(job, self.events.notify)
        for event in sse.prologue(reset=start.reset).split(b"\n\n"):
            if event.startswith(b"data: "):
                self.take(json.loads(event[6:]))

    @precondition(lambda self: self.connected)
    @rule(most=st.integers(1, 5))
    def receive(self, most: int) -> None:
        for _ in range(most):
            frame = self.next_frame()
            if frame is None:
                break
            self.take(frame)

    @precondition(lambda self: self.socket is not None and self.to_ack is not None)
    @rule()
    def ack(self) -> None:
        assert self.socket is not None
        self.socket.send("ack", job_id=ID, cursor=self.to_ack)

    @rule(ms=st.integers(1, 40))
    def wait(self, ms: int) -> None:
        self.wire.stage.clock.advance(ms)

    @rule()
    def drop(self) -> None:
        if self.socket is not None:
            self.socket.session.close()
        self.socket = self.events = None

    def next_frame(self) -> Sent | None:
        """Take the next frame from whatever is connected."""
        if self.socket is not None:
            return self.socket.pull()
        assert self.events is not None
        event = self.events.next(self.wire.stage.clock.monotonic_ms())
        if event is None:
            return None
        id_line, data_line, *rest = event.split(b"\n")
        sent: Sent = json.loads(data_line.removeprefix(b"data: "))
        assert (id_line, rest) == (b"id: " + sent["cursor"].encode(), [b"", b""])
        return sent

    def take(self, frame: Sent) -> None:
        """Do what the five-minute version does with a frame, and compare with the log."""
        if frame["type"] == "error":
            assert frame["error"]["code"] in ("job_lost", "job_not_found")
            assert self.job is None
            self.start_over()
            return
        if frame.get("reset"):
            self.out, self.ends = "", 0
        if "cursor" in frame:
            assert self.ends == 0, "something follows the end"
            self.after = frame["cursor"]
            self.to_ack = frame["cursor"] if self.window else None
        if frame["type"] == "token":
            self.out += frame["text"]
        self.ends += frame["type"] == "end"
        if "cursor" in frame:
            self.compare()

    def compare(self) -> None:
        """The client's text is what the log of its cursor says up to it, and the end is where the log's end is."""
        assert self.after is not None and self.job is not None
        epoch, _, n = self.after.rpartition("-")
        records = self.logs[epoch].read(0, int(n))
        assert len(records) == int(n)
        assert self.out == "".join(record.event.text for record in records if isinstance(record.event, Token))
        assert self.ends == (self.logs[epoch].ended and int(n) == self.logs[epoch].tail)

    def start_over(self) -> None:
        """The server has no such job: forget it and create it anew, knowing that it is another run."""
        self.drop()
        self.after, self.out, self.ends = None, "", 0

    def teardown(self) -> None:
        """In the end, one more connection gets all that is missing."""
        self.drop()
        self.connect_websocket("create")
        if not self.connected:
            self.connect_websocket("create")
        self.finish()
        while self.connected and (frame := self.next_frame()) is not None:
            self.take(frame)
        job = self.job
        assert job is not None
        assert (self.out, self.ends) == (job.text(), 1)


STEPS = settings(max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestResume = ResumeMachine.TestCase
TestResume.settings = STEPS


def without_epoch(position: Callable[..., int | None]) -> Callable[[JobLog, str], int | None]:
    """A server that believes every epoch."""
    return lambda log, cursor: position(log, f"{log.epoch}-{cursor.rpartition('-')[2]}")


def one_too_early(position: Callable[..., int | None]) -> Callable[[JobLog, str], int | None]:
    """A server that sends the last event again."""
    return lambda log, cursor: None if (n := position(log, cursor)) is None else max(n - 1, 0)


def one_too_late(position: Callable[..., int | None]) -> Callable[[JobLog, str], int | None]:
    """A server that leaves one event out."""
    return lambda log, cursor: None if (n := position(log, cursor)) is None else min(n + 1, log.tail)


# What is found is shrunk, which takes as long as it is hard.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mutate", [without_epoch, one_too_early, one_too_late])
def test_a_server_that_resumes_wrongly_is_caught(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobLog, "position", mutate(JobLog.position))
    # It stops at the first find, mostly within 300 examples. How many it takes depends on the modules that are loaded:
    # Hypothesis draws from their constants.
    search = settings(STEPS, max_examples=5000, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ResumeMachine, settings=search)
