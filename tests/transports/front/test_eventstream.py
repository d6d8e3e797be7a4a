"""Event streams: what the log brings is pushed, and the task of a stream is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Generator
from pathlib import Path
from typing import Any

import pytest
from quart import g

from tests.transports.keys import ANN, House, make_running
from worker.protocol import frames, sse
from worker.transports.front.eventstream import job_events
from worker.transports.routes import bodies
from worker.transports.routes.answers import event_stream

TOKENS = 20


class Steps:
    """Awaits something and counts how often its task goes on."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable = awaitable
        self.count = 0

    def __await__(self) -> Generator[Any, None, Any]:
        inner = self._awaitable.__await__()
        while True:
            self.count += 1
            try:
                waited_for = next(inner)
            except StopIteration as result:
                return result.value
            yield waited_for


class Following:
    """A task that follows a job of `house`, and a socket that takes chunks while it is not `full`."""

    def __init__(self, house: House) -> None:
        self.job = make_running(house)
        self.pushed: list[bytes] = []
        self.yielded: list[bytes] = []
        self.full = False
        gateway, start = house.gateway, sse.start(self.job, None, None)
        reader = gateway.frame_source.reader(self.job, start.after, frames.CHANNELS)
        self._events = job_events(gateway, self.job, house.access.authenticate(ANN), reader, self._push, reset=False)
        self.steps = Steps(self._read())
        self.task = asyncio.ensure_future(self._run())

    def _push(self, chunk: bytes) -> bool:
        if not self.full:
            self.pushed.append(chunk)
        return not self.full

    async def _read(self) -> None:
        async for chunk in self._events:
            self.yielded.append(chunk)

    async def _run(self) -> None:
        await self.steps


async def no_events() -> AsyncIterator[bytes]:
    """A stream on which nothing comes."""
    return
    yield b""


async def settle() -> None:
    """Let everything happen that is due."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_task_is_woken_for_a_token(house: House) -> None:
    following = Following(house)
    await settle()
    house.stage.start(following.job)
    await settle()
    steps, chunks = following.steps.count, len(following.pushed)
    for number in range(TOKENS):
        house.stage.tokens(following.job, f"{number} ")
        await settle()
    assert len(following.pushed) == chunks + TOKENS
    assert following.steps.count == steps
    assert following.yielded == []
    house.stage.finish(following.job)
    await asyncio.wait_for(following.task, 10)
    assert b'"completion_tokens":20' in following.pushed[-1]


async def test_the_task_goes_on_for_what_the_socket_does_not_take(house: House) -> None:
    following = Following(house)
    await settle()
    house.stage.start(following.job)
    await settle()
    following.full = True
    for number in range(TOKENS):
        house.stage.tokens(following.job, f"{number} ")
    await settle()
    assert b"".join(following.yielded).count(b'"type":"token"') >= 1
    following.full = False
    house.stage.finish(following.job)
    await asyncio.wait_for(following.task, 10)
    text = b"".join(following.yielded) + b"".join(following.pushed)
    assert all(b"%d " % number in text for number in range(TOKENS))


@pytest.mark.parametrize("method", ["POST", "HEAD"])
async def test_the_body_of_its_request_does_not_stay(tmp_path: Path, method: str) -> None:
    house = House(tmp_path / "keys.toml")
    async with house.client.app.test_request_context("/v1/jobs", method=method):
        g.body = {"prompt": "x" * 100_000}
        event_stream(no_events())
        assert "body" not in g


def test_an_idle_request_has_no_queues() -> None:
    kept = vars(bodies.SmallBody(None, None)).values()
    assert not any(isinstance(one, asyncio.Event) for one in kept)
