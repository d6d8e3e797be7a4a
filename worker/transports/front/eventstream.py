"""Server-sent events: a job's stream in the modern and the legacy dialect, and the progress of loading.

Each response is an async generator that Quart sends chunk by chunk; a client that goes away cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from quart import Response

from worker.dialects.legacy.stream import LegacyReader
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.protocol import sse, views
from worker.protocol.reading import LogReader
from worker.transports.connection import YIELD_EVERY
from worker.transports.gateway import Gateway
from worker.transports.wake import Wake

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}

CHUNK_BYTES = 64 * 1024
"""Events that wait already are sent together, up to about this size: one system call instead of many."""


class Reader(Protocol):
    """One reader of one job, in some dialect."""

    @property
    def ended(self) -> bool:
        """Whether the job has ended and all of it was read."""
        ...

    def next(self, now_ms: float) -> bytes | None:
        """Return the next event at monotonic time `now_ms`, or None if there is nothing to send now."""
        ...

    def notify(self) -> None:
        """The log has grown."""
        ...


def job_response(
    gateway: Gateway,
    job: Job,
    grant: Grant,
    reader: LogReader,
    *,
    reset: bool,
    coalesce_ms: int = 0,
    ignored: Sequence[str] = (),
) -> Response:
    """Stream a job in the modern dialect, with at least `coalesce_ms` between token frames, while `grant` holds.

    `ignored` names fields of the request that the worker does not know.
    """
    if reset:
        gateway.frames.tally.resets += 1
    wake = Wake()
    sse_reader = sse.SseReader(reader, coalesce_ms, wake.set, gateway.timer, ignored)
    response = _response(_JobConnection(gateway, grant, sse_reader, wake).follow(job, sse.prologue(reset=reset)))
    response.headers.update(sse.ignored_header(ignored))
    return response


def legacy_response(gateway: Gateway, job: Job, grant: Grant, reader: LegacyReader) -> Response:
    """Stream a job in the legacy dialect, one chunk per event and no comments, while `grant` holds."""
    wake = Wake()
    return _response(_LegacyConnection(gateway, grant, _LegacyAdapter(reader, wake.set), wake).follow(job))


def loading_response(gateway: Gateway) -> Response:
    """Stream the progress of loading the model until it is ready or has failed."""
    return _response(_LoadingConnection(gateway).follow())


def _response(body: AsyncIterator[bytes]) -> Response:
    response = Response(body, headers=HEADERS)
    # Quart ends a response after 60 s otherwise, silently.
    response.timeout = None
    return response


class _LegacyAdapter:
    """A reader in the legacy dialect, which knows no pauses."""

    def __init__(self, reader: LegacyReader, notify: Callable[[], None]) -> None:
        self._reader = reader
        self.notify = notify

    @property
    def ended(self) -> bool:
        return self._reader.ended

    def next(self, _: float) -> bytes | None:
        return self._reader.next()


class _JobConnection:
    """A stream of one job: sends what is there, else waits for the log, the time, the ticker or the shutdown."""

    kind = "sse"
    heartbeat = sse.HEARTBEAT
    chunk_bytes = CHUNK_BYTES

    def __init__(self, gateway: Gateway, grant: Grant, reader: Reader, wake: Wake) -> None:
        self._gateway = gateway
        self._grant: Grant | None = grant
        self._reader = reader
        self._wake = wake
        self._silent_since = gateway.clock.monotonic_ms()
        self._beat = False
        self._finishing = False

    async def follow(self, job: Job, prologue: bytes = b"") -> AsyncIterator[bytes]:
        """Yield chunks until the job's end was sent or the worker shuts down."""
        jobs, clock, reader = self._gateway.jobs, self._gateway.clock, self._reader
        notify = reader.notify
        jobs.watch(job, notify)
        try:
            with self._gateway.connected(self):
                if prologue:
                    yield prologue
                sent = 0
                while self._grant is not None:
                    now_ms = clock.monotonic_ms()
                    chunk = self._chunk(now_ms)
                    if chunk:
                        yield chunk
                        self._silent_since = now_ms
                        sent += 1
                        if sent % YIELD_EVERY == 0:
                            await asyncio.sleep(0)
                    elif self._finishing:
                        return
                    if reader.ended:
                        return
                    if len(chunk) < self.chunk_bytes and not self._finishing:
                        await self._wake.wait_next()
        finally:
            jobs.unwatch(job, notify)

    def _chunk(self, now_ms: float) -> bytes:
        """Join the events that wait, up to about `chunk_bytes`; empty when there is nothing to say."""
        parts: list[bytes] = []
        size = 0
        while size < self.chunk_bytes and (part := self._reader.next(now_ms)) is not None:
            parts.append(part)
            size += len(part)
        if not parts and self._beat:
            parts.append(self.heartbeat)
        self._beat = False
        return b"".join(parts)

    def tick(self, now_ms: float) -> None:
        """Say something after a silence, so that proxies and clients know that the stream lives; end with the key."""
        if self._grant is not None:
            self._grant = self._gateway.access.current(self._grant)
            if self._grant is None:
                self._wake.set()
        if self.heartbeat and now_ms - self._silent_since >= self._gateway.settings.heartbeat_s * 1000:
            self._beat = True
            self._wake.set()

    def drain(self) -> None:
        """Nothing to do: the stream ends with its job."""

    def finish(self) -> None:
        """Send what is there and end the response."""
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Nothing to do: an ASGI response cannot be cut, and TCP_USER_TIMEOUT does it."""


class _LegacyConnection(_JobConnection):
    """A stream in the legacy dialect: old clients know no comments, and want every event in a chunk of its own."""

    kind = "legacy"
    heartbeat = b""
    chunk_bytes = 1


class _LoadingConnection:
    """Somebody who watches the model being loaded."""

    kind = "loading"

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

    def drain(self) -> None:
        """Nothing to do: who watches the loading has no jobs here."""

    def finish(self) -> None:
        """End the response."""
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Nothing to do, as for a job's stream."""
