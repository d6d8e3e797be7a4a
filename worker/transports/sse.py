"""Server-sent events: a job's stream in the modern and the legacy dialect, and the progress of loading.

Each response is an async generator that Quart sends chunk by chunk; a client that goes away cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from quart import Response

from worker.jobs.job import Job
from worker.protocol import sse, views
from worker.protocol.eventstream import EventStream
from worker.protocol.legacy import LegacyStream
from worker.transports.base import YIELD_EVERY, Gateway, Wake

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}

CHUNK_BYTES = 64 * 1024
"""Events that wait already are sent together, up to about this size: one system call instead of many."""

Take: TypeAlias = Callable[[], bytes | None]


def job_response(gateway: Gateway, job: Job, stream: EventStream, *, reset: bool) -> Response:
    """Stream a job in the modern dialect."""

    def take() -> bytes | None:
        frame = stream.next()
        return None if frame is None else sse.encode(frame)

    connection = _SseConnection(gateway, lambda: stream.done, take, sse.HEARTBEAT)
    return _response(connection.follow(job, sse.prologue(reset=reset)))


def legacy_response(gateway: Gateway, job: Job, stream: LegacyStream) -> Response:
    """Stream a job in the legacy dialect: one chunk per event, no comments."""
    connection = _SseConnection(gateway, lambda: stream.done, stream.next, None)
    return _response(connection.follow(job, b"", chunk_bytes=1))


def loading_response(gateway: Gateway) -> Response:
    """Stream the progress of loading the model until it is ready or has failed."""
    return _response(_LoadingConnection(gateway).follow())


def _response(body: AsyncIterator[bytes]) -> Response:
    response = Response(body, headers=HEADERS)
    # Quart ends a response after 60 s otherwise, silently.
    response.timeout = None
    return response


class _SseConnection:
    """One reader of one job: takes what is there, else waits to be woken by the log, the ticker or the shutdown."""

    def __init__(self, gateway: Gateway, done: Callable[[], bool], take: Take, heartbeat: bytes | None) -> None:
        self._gateway = gateway
        self._done = done
        self._take = take
        self._heartbeat = heartbeat
        self._wake = Wake()
        self._silent_since = gateway.clock.monotonic_ms()
        self._beat = False
        self._finishing = False

    async def follow(self, job: Job, prologue: bytes, chunk_bytes: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
        """Yield chunks until the job's end was sent or the worker shuts down."""
        jobs, clock = self._gateway.jobs, self._gateway.clock
        jobs.watch(job, self._wake.set)
        try:
            with self._gateway.connected(self):
                if prologue:
                    yield prologue
                sent = 0
                while True:
                    chunk = self._chunk(chunk_bytes)
                    if chunk:
                        yield chunk
                        self._silent_since = clock.monotonic_ms()
                        sent += 1
                        if sent % YIELD_EVERY == 0:
                            await asyncio.sleep(0)
                    elif self._done() or self._finishing:
                        return
                    else:
                        await self._wake.wait_next()
        finally:
            jobs.unwatch(job, self._wake.set)

    def _chunk(self, chunk_bytes: int) -> bytes:
        """Join the events that wait, up to about `chunk_bytes`; empty when there is nothing to say."""
        parts: list[bytes] = []
        size = 0
        while size < chunk_bytes and (part := self._take()) is not None:
            parts.append(part)
            size += len(part)
        if not parts and self._beat:
            parts.append(self._heartbeat or b"")
        self._beat = False
        return b"".join(parts)

    def tick(self, now_ms: float) -> None:
        """Say something after a silence, so that proxies and clients know that the stream lives."""
        if self._heartbeat and now_ms - self._silent_since >= self._gateway.settings.heartbeat_s * 1000:
            self._beat = True
            self._wake.set()

    def finish(self) -> None:
        """Send what is there and end the response."""
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Nothing to do: an ASGI response cannot be cut, and TCP_USER_TIMEOUT does it."""


class _LoadingConnection:
    """Somebody who watches the model being loaded."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._wake = Wake()
        self._finishing = False

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield an event for every change until the model is ready or has failed, or the worker shuts down."""
        gateway, last = self._gateway, b""
        gateway.state_wakers.add(self._wake.set)
        try:
            with gateway.connected(self):
                while not self._finishing:
                    item, done = views.loading_item(gateway.jobs.engine)
                    if item != last:
                        yield b"data: " + item + b"\n\n"
                        last = item
                    if done:
                        yield b"data: [DONE]\n\n"
                        return
                    await self._wake.wait_next()
        finally:
            gateway.state_wakers.discard(self._wake.set)

    def tick(self, now_ms: float) -> None:
        """Nothing to do: old clients know no comments."""

    def finish(self) -> None:
        """End the response."""
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Nothing to do, as for a job's stream."""
