"""A session, or several, over a scripted engine, spoken to in frames."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from tests.jobs.scripted import LIMITS, Stage
from worker.errors import Unauthorized
from worker.events import Note
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant, Principal
from worker.observers.narration import narrate
from worker.operations.base import Limits, Operation
from worker.operations.infer import Infer
from worker.operations.status import Status
from worker.operations.worker_check import WorkerCheck
from worker.protocol import decoding
from worker.protocol.frames import ClientFrame
from worker.protocol.reading import Frame, FrameSource, LogReader
from worker.protocol.session import Session
from worker.protocol.tally import Tally

Sent: TypeAlias = dict[str, Any]

ID = "3f2c9a7e-5b1d-4c8e-9f00-aa12bb34cc56"
MEMBERS_MAX = 20_000
OTHER = "another-job-of-ours"
IDS = [f"job-number-{number_:08d}" for number_ in range(64)]


class Wire:
    """A stage and its frames. `source` makes streams, `connect` sessions."""

    def __init__(self, stage: Stage | None = None, **settings: Any) -> None:
        self.stage = stage or Stage(**settings)
        self.tally = Tally()
        self.source = FrameSource(narrate, self.tally, self.stage.settings.frame_bytes_max)

    def connect(self, principal: str = "ann") -> Client:
        """Open a connection of somebody who has shown a key."""
        return Client(self, Grant(principal=Principal(name=principal)))

    def knock(self, **grants: Grant) -> Client:
        """Open a connection without a key. `grants` are the tokens that are good for something."""
        return Client(self, None, grants)


class Client:
    """One connection as its client sees it: `send` a frame, `pull` or `pull_all` what comes back."""

    def __init__(self, wire: Wire, grant: Grant | None, grants: Mapping[str, Grant] | None = None) -> None:
        self.stage = wire.stage
        self.wakes = 0
        self.grants = dict(grants or {})
        broker = self.stage.broker
        # What a session needs of the worker:
        self.jobs = self.stage.jobs
        self.settings = self.stage.settings
        self.limits = LIMITS
        self.tally = wire.tally
        self.frame_source = wire.source
        self.timer = self.stage.clock
        self.operations: dict[str, Operation] = {
            "infer": Infer(),
            "status": Status(lambda: broker.state),
            "worker_check": WorkerCheck(),
        }
        self.session = Session(self, grant, self._authenticate, self._wake)

    def sse_url(self, job: Job) -> str:
        """Where the job's stream is."""
        return f"/v1/jobs/{job.id}/stream"

    def _authenticate(self, token: str) -> Grant:
        if token not in self.grants:
            raise Unauthorized("The key or token is not valid.")
        return self.grants[token]

    def _wake(self) -> None:
        self.wakes += 1

    def send(self, kind: str, **fields: Any) -> None:
        """Send one frame."""
        self.send_text(json.dumps({"type": kind, **fields}))

    def send_text(self, text: str | bytes) -> None:
        """Send one message as it stands."""
        self.session.receive(text, self.stage.clock.monotonic_ms())

    def pull(self) -> Sent | None:
        """Take the next frame, checked to be what every frame is: one flat JSON object without nulls."""
        data = self.session.pull(self.stage.clock.monotonic_ms())
        return None if data is None else parsed(data)

    def pull_all(self) -> list[Sent]:
        """Take all frames that there are now."""
        found = []
        while (frame := self.pull()) is not None:
            found.append(frame)
        return found

    def ask(self, kind: str, **fields: Any) -> Sent:
        """Send a frame when nothing waits, and return its reply, the next frame there is."""
        self.send(kind, **fields)
        reply = self.pull()
        assert reply is not None
        return reply


def connected(**settings: Any) -> tuple[Wire, Client]:
    """Return a wire and one connection."""
    wire = Wire(**settings)
    return wire, wire.connect()


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


def remark(job: Job, action: str = "remark") -> None:
    """Write a remark into the log."""
    job.log.append(Note(actor="test", action=action, human="Something happened"), at_ms=0)


def decode(data: str | bytes, frame_bytes_max: int, limits: Limits) -> ClientFrame:
    """Return the client frame in a message."""
    return decoding.interpret(decoding.load(data, frame_bytes_max, MEMBERS_MAX), limits)


def parsed(data: bytes) -> Sent:
    """Return a frame's object; it has a type first, and no null anywhere."""
    frame: Sent = json.loads(data.decode())
    assert next(iter(frame)) == "type"
    assert not _has_null(frame)
    assert b"\n" not in data
    return frame


def _has_null(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_null(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_null(item) for item in value)
    return value is None


def drain(stream: LogReader) -> list[Frame]:
    """Take all frames that a stream has now."""
    found = []
    while (frame := stream.next()) is not None:
        found.append(frame)
    return found


def text(frames: Iterable[Sent], index: int = 0) -> str:
    """Return the text of one choice in these frames."""
    return "".join(frame["text"] for frame in frames if frame["type"] == "token" and frame.get("index", 0) == index)


def types(frames: Iterable[Sent]) -> list[str]:
    """Return the types of these frames."""
    return [frame["type"] for frame in frames]


def number(cursor: str) -> int:
    """Return a cursor's number. Tests may look into it, clients may not."""
    return int(cursor.rpartition("-")[2])
