"""A client of the wire for tests: sends frames as they are, and holds every reader to what the protocol promises.

`Socket` is one WebSocket, `sse_frames` one event stream. Both feed a `Reading`, which refuses what no reader may ever
see: a gap or a repetition in the log, a frame of another log, anything after the end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support.server import Server

Frame: TypeAlias = dict[str, Any]

PATIENCE_S = 60.0
"""How long to wait for anything at all: the machine may be busy."""


def count_prompt(first: int, last: int) -> str:
    """A request that the bundled model answers exactly."""
    return f"Count from {first} to {last}"


def expected_count(first: int, last: int) -> str:
    """What it answers, by its model card."""
    return " ".join(map(str, range(first, last + 1)))


def counting(first: int = 1, last: int = 60, **fields: Any) -> Frame:
    """The fields of a job that counts."""
    return {"prompt": count_prompt(first, last), "temperature": 0, "max_tokens": 1500, **fields}


def new_id() -> str:
    """A job id."""
    return f"test-{uuid.uuid4().hex}"


def split_cursor(cursor: str) -> tuple[str, int]:
    """Epoch and number of a cursor. Clients must not look into it; tests do."""
    epoch, _, number = cursor.rpartition("-")
    return epoch, int(number)


class Reading:
    """What one reader has seen of one job, over any number of connections. `whole`: on all channels, without a gap."""

    def __init__(self, *, whole: bool = True) -> None:
        self.frames: list[Frame] = []
        self.accepted: list[Frame] = []
        self.resets = 0
        self._whole = whole

    def take(self, frame: Frame) -> None:
        """Take the next frame. Raises AssertionError if it may not come now."""
        if frame["type"] == "accepted":
            self.accepted.append(frame)
            if frame.get("reset"):
                self.resets += 1
                self.frames.clear()
            return
        assert not self.ended, f"a frame after the end: {frame}"
        epoch, number = split_cursor(frame["cursor"])
        if self.cursor is not None:
            assert epoch == split_cursor(self.cursor)[0], f"another epoch without a reset: {frame}"
        step = frame.get("n", 1)
        if self._whole:
            assert number == self.number + step, f"after {self.number} came {frame}"
        else:
            assert number >= self.number + step, f"after {self.number} came {frame}"
        self.frames.append(frame)

    @property
    def cursor(self) -> str | None:
        """Where to resume."""
        return self.frames[-1]["cursor"] if self.frames else None

    @property
    def number(self) -> int:
        """Log number of the last frame."""
        return split_cursor(self.cursor)[1] if self.cursor is not None else 0

    @property
    def ended(self) -> bool:
        """Whether the end was seen."""
        return bool(self.frames) and self.frames[-1]["type"] == "end"

    @property
    def end(self) -> Frame:
        """The end frame."""
        assert self.ended, f"not ended: {self.frames[-3:]}"
        return self.frames[-1]

    @property
    def tokens(self) -> list[Frame]:
        """The token frames."""
        return [frame for frame in self.frames if frame["type"] == "token"]

    @property
    def actions(self) -> list[str]:
        """What was narrated."""
        return [frame["action"] for frame in self.frames if frame["type"] == "narration"]

    def text(self, index: int = 0) -> str:
        """The text of one choice."""
        return "".join(frame["text"] for frame in self.tokens if frame.get("index", 0) == index)

    def story(self) -> list[Frame]:
        """All frames, with adjacent tokens of a choice joined: the same for all, however frames were merged."""
        joined: list[Frame] = []
        for frame in self.frames:
            last = joined[-1] if joined else {}
            if frame["type"] == last.get("type") == "token" and frame.get("index") == last.get("index"):
                together = {"text": last["text"] + frame["text"], "cursor": frame["cursor"]}
                joined[-1] = {**last, **together, "n": last["n"] + frame.get("n", 1)}
            else:
                joined.append({"n": 1, **frame})
        return joined


class Socket:
    """One WebSocket. Frames of jobs go to `readings`; `ask` returns the reply to a request."""

    def __init__(self, server: Server, **options: Any) -> None:
        self._server = server
        plain: dict[str, Any] = {"proxy": None, "compression": None, "max_size": None, "ping_interval": None}
        self._options = {**plain, "subprotocols": [Subprotocol("jobwire.v1")], **options}
        self._refs = itertools.count(1)
        self.readings: dict[str, Reading] = {}
        self.hello: Frame = {}
        self.errors: list[Frame] = []
        self.raw: ClientConnection

    async def __aenter__(self) -> Self:
        self.raw = await connect(self._server.ws_url, **self._options)
        self.hello = await self.receive()
        assert self.hello["type"] == "hello"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.raw.close()

    async def cut(self) -> None:
        """Lose the connection without a goodbye."""
        self.raw.transport.abort()
        await self.raw.wait_closed()

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a frame."""
        await self.raw.send(json.dumps({"type": kind, **fields}))

    async def receive(self) -> Frame:
        """Return the next frame, after it was given to its reading."""
        data = await asyncio.wait_for(self.raw.recv(), PATIENCE_S)
        assert isinstance(data, str), "a binary message"
        frame: Frame = json.loads(data)
        if frame["type"] == "error":
            self.errors.append(frame)
        elif "job_id" in frame and frame["job_id"] in self.readings:
            self.readings[frame["job_id"]].take(frame)
        return frame

    async def ask(self, kind: str, **fields: Any) -> Frame:
        """Send a request and return its reply; what comes before it goes to the readings."""
        ref = f"ref-{next(self._refs)}"
        await self.send(kind, ref=ref, **fields)
        while True:
            frame = await self.receive()
            if frame.get("ref") == ref:
                return frame

    async def create(self, reading: Reading | None = None, **fields: Any) -> str:
        """Create a job and return its id once it is accepted."""
        job_id: str = fields.setdefault("job_id", new_id())
        self.readings[job_id] = reading or Reading(whole="channels" not in fields)
        reply = await self.ask("create", **fields)
        assert reply["type"] == "accepted", reply
        return job_id

    async def subscribe(self, job_id: str, reading: Reading | None = None, **fields: Any) -> Reading:
        """Follow a job from its start or from `after`."""
        followed = self.readings[job_id] = reading or Reading(whole="channels" not in fields)
        reply = await self.ask("subscribe", job_id=job_id, **fields)
        assert reply["type"] == "accepted", reply
        return followed

    async def until(self, condition: Callable[[], bool]) -> None:
        """Receive until a condition holds."""
        while not condition():
            await self.receive()

    async def finish(self, *job_ids: str) -> list[Reading]:
        """Receive until these jobs, or all that are followed, have ended; return what was read of them."""
        readings = [self.readings[job_id] for job_id in job_ids or self.readings]
        await self.until(lambda: all(reading.ended for reading in readings))
        return readings

    async def run(self, **fields: Any) -> Reading:
        """Create a job and read it to its end."""
        return (await self.finish(await self.create(**fields)))[0]


def http(server: Server, **options: Any) -> httpx.AsyncClient:
    """An HTTP client for a worker."""
    options = {"timeout": PATIENCE_S, "trust_env": False, "limits": httpx.Limits(max_connections=None), **options}
    return httpx.AsyncClient(base_url=server.url, **options)


async def sse_frames(response: httpx.Response) -> AsyncIterator[Frame]:
    """The frames of an event stream, whose `id:` must be their cursor."""
    assert response.status_code == 200, response.status_code
    assert response.headers["content-type"].startswith("text/event-stream")
    buffer = b""
    async for chunk in response.aiter_bytes():
        buffer += chunk
        while b"\n\n" in buffer:
            block, buffer = buffer.split(b"\n\n", 1)
            if (frame := _parse_event(block.decode())) is not None:
                yield frame
    assert not buffer, f"the stream ended within an event: {buffer!r}"


def _parse_event(block: str) -> Frame | None:
    fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
    assert fields.keys() <= {"id", "data", "retry"}, f"unnamed events only: {block!r}"
    if "data" not in fields:
        return None
    frame: Frame = json.loads(fields["data"])
    assert fields.get("id") == frame.get("cursor")
    return frame


@asynccontextmanager
async def sse(client: httpx.AsyncClient, job_id: str, after: str | None = None) -> AsyncIterator[AsyncIterator[Frame]]:
    """Follow a job over SSE for the length of a `with` block."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream", headers=headers) as response:
        yield sse_frames(response)


async def read_sse(
    client: httpx.AsyncClient, job_id: str, reading: Reading | None = None, limit: int = 1 << 30
) -> Reading:
    """Read a job over SSE from where `reading` stands, to its end or for `limit` frames."""
    reading = reading or Reading()
    async with sse(client, job_id, reading.cursor) as frames:
        async for frame in frames:
            reading.take(frame)
            limit -= 1
            if limit <= 0:
                break
    return reading


async def post_stream(client: httpx.AsyncClient, **fields: Any) -> Reading:
    """Create a job by POST and read the answer, which is its stream."""
    reading = Reading()
    async with client.stream("POST", "/v1/jobs", json=fields, headers={"Accept": "text/event-stream"}) as response:
        async for frame in sse_frames(response):
            reading.take(frame)
    return reading


async def post_job(client: httpx.AsyncClient, **fields: Any) -> str:
    """Create a job by POST and return its id."""
    answer = await client.post("/v1/jobs", json=fields, headers={"Accept": "application/json"})
    assert answer.status_code == 200, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id
