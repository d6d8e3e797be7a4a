"""Event streams: a job's events in the modern or the legacy dialect, and the progress of loading, as chunks of bytes.

Each stream is an async generator that the server sends chunk by chunk. A client that disconnects cancels it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from worker.dialects.legacy.stream import LegacyReader
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.protocol import sse, views
from worker.protocol.reading import LogReader
from worker.transports.connection import YIELD_EVERY
from worker.transports.front.stream import PUSH_NAME
from worker.transports.gateway import Gateway
from worker.transports.wake import Wake

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 1024
"""Pending events are joined to a chunk of about this size: one system call instead of many."""


Push: TypeAlias = Callable[[bytes], bool]
"""Sends a chunk of an answer past all layers, unless earlier bytes wait; returns whether it was sent."""


def push_of(scope: Mapping[str, Any]) -> Push | None:
    """Return what pushes chunks of the answer to the request of an ASGI scope; None in a test without a socket."""
    push: Push | None = scope.get("extensions", {}).get(PUSH_NAME)
    return push


class Reader(Protocol):
    """One reader of one job, in some dialect."""

    @property
    def ended(self) -> bool:
        """Whether the job has ended and every event was returned."""
        ...

    def next(self, now_ms: float) -> bytes | None:
        """Return the next event at monotonic time `now_ms`, or None if there is nothing to send now."""
        ...

    def notify(self) -> None:
        """Note that the log has grown."""
        ...


def job_events(
    gateway: Gateway,
    job: Job,
    grant: Grant,
    reader: LogReader,
    push: Push | None,
    *,
    reset: bool,
    coalesce_ms: int = 0,
    ignored: Sequence[str] = (),
) -> AsyncIterator[bytes]:
    """Stream a job in the modern dialect while `grant` is valid, with `coalesce_ms` or more between token frames.

    `ignored` names fields of the request that the worker does not know.
    """
    if reset:
        gateway.tally.resets += 1
    connection = EventStreamConnection(gateway, grant, push)
    events = sse.SseReader(reader, coalesce_ms, connection.wake, gateway.timer, ignored)
    return connection.follow(job, events, sse.prologue(reset=reset))


def legacy_events(
    gateway: Gateway, job: Job, grant: Grant, reader: LegacyReader, push: Push | None
) -> AsyncIterator[bytes]:
    """Stream a job in the legacy dialect while `grant` is valid.

    Old clients do not know comments, so there are no heartbeats, and expect every event in a chunk of its own.
    """
    connection = EventStreamConnection(gateway, grant, push, kind="legacy", heartbeat=b"", chunk_bytes=1)
    return connection.follow(job, _LegacyEvents(reader, connection.wake))


def loading_events(gateway: Gateway, *, known: bool) -> AsyncIterator[bytes]:
    """Stream the progress of loading the model until it is ready or has failed; the reason only to `known` callers."""
    return LoadingConnection(gateway, known=known).follow()


class _LegacyEvents:
    """A reader in the legacy dialect, which has no pauses between events."""

    def __init__(self, reader: LegacyReader, notify: Callable[[], None]) -> None:
        self._reader = reader
        self.notify = notify

    @property
    def ended(self) -> bool:
        return self._reader.ended

    def next(self, _: float) -> bytes | None:
        return self._reader.next()


class EventStreamConnection:
    """A stream of one job: sends pending events, else waits for the log, the timer, the ticker or the shutdown.

    A task runs it, but is not woken for what the log brings while it waits: the delivery pushes that, as it does for
    WebSockets. Only when the socket does not accept everything at once the task goes on, and waits for the client.
    `heartbeat` is sent after a silence, unless it is empty. Events are joined to chunks of about `chunk_bytes`.
    """

    def __init__(
        self,
        gateway: Gateway,
        grant: Grant,
        push: Push | None,
        *,
        kind: str = "sse",
        heartbeat: bytes = sse.HEARTBEAT,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.kind = kind
        self._gateway = gateway
        self._grant: Grant | None = grant
        self._reader: Reader | None = None
        self._push = push
        # Whether the task waits, whether a turn of the delivery is waited for, and what it could not push.
        self._waits = False
        self._ready = False
        self._left = b""
        self._wake = Wake()
        self._heartbeat = heartbeat
        self._chunk_bytes = chunk_bytes
        self._silent_since = gateway.clock.monotonic_ms()
        self._heartbeat_due = False
        self._finishing = False

    async def follow(self, job: Job, reader: Reader, prologue: bytes = b"") -> AsyncIterator[bytes]:
        """Yield chunks until the job's end was sent, the grant expires or the worker shuts down."""
        jobs, clock, notify = self._gateway.jobs, self._gateway.clock, reader.notify
        self._reader = reader
        jobs.watch(job, notify)
        try:
            with self._gateway.connected(self):
                if prologue and not self._pushed(prologue):
                    yield prologue
                sent = 0
                while self._grant is not None:
                    now_ms = clock.monotonic_ms()
                    chunk = self._chunk(now_ms)
                    if chunk:
                        # What is yielded stays in memory until the next chunk is.
                        if not self._pushed(chunk):
                            yield chunk
                        self._silent_since = now_ms
                        sent += 1
                        if sent % YIELD_EVERY == 0:
                            await asyncio.sleep(0)
                    elif self._finishing:
                        return
                    if reader.ended:
                        return
                    more, chunk = len(chunk) >= self._chunk_bytes, b""
                    if not more and not self._finishing:
                        self._waits = True
                        await self._wake.wait_next()
                        self._waits = False
        finally:
            self._waits = False
            jobs.unwatch(job, notify)

    def _pushed(self, chunk: bytes) -> bool:
        return self._push is not None and self._push(chunk)

    def wake(self) -> None:
        """Let what is pending be sent."""
        if not self._waits or self._push is None:
            self._wake.set()
        elif not self._ready:
            self._ready = True
            self._gateway.delivery.add(self)

    def flush(self, now_ms: float) -> None:
        """Push what is pending, if the task still waits; wake it for the end, and for what the socket does not take."""
        self._ready = False
        if not self._waits or self._push is None or self._reader is None:
            self._wake.set()
            return
        try:
            chunk = self._chunk(now_ms)
        except Exception:
            # A bug ends this stream, and no other. Its client resumes.
            logger.exception("error in an event stream")
            self._grant = None
            self._wake.set()
            return
        if chunk and not self._push(chunk):
            self._left = chunk
            self._wake.set()
        elif chunk:
            self._silent_since = now_ms
            if self._reader.ended:
                self._wake.set()
            elif len(chunk) >= self._chunk_bytes:
                self.wake()

    def _chunk(self, now_ms: float) -> bytes:
        """Return the pending events, up to about `chunk_bytes`, else a heartbeat that is due, else nothing."""
        assert self._reader is not None
        if self._left:
            left, self._left = self._left, b""
            return left
        parts: list[bytes] = []
        size = 0
        while size < self._chunk_bytes and (part := self._reader.next(now_ms)) is not None:
            parts.append(part)
            size += len(part)
        if not parts and self._heartbeat_due:
            parts.append(self._heartbeat)
        self._heartbeat_due = False
        return b"".join(parts)

    def tick(self, now_ms: float) -> None:
        """Send a heartbeat after a silence, which shows proxies and clients that the stream lives; end with the key."""
        if self._grant is not None:
            self._grant = self._gateway.access.current(self._grant)
            if self._grant is None:
                self._wake.set()
        if self._heartbeat and now_ms - self._silent_since >= self._gateway.settings.heartbeat_s * 1000:
            self._heartbeat_due = True
            self._wake.set()

    def drain(self) -> None:
        """Do nothing: the stream ends with its job."""

    def finish(self) -> None:
        """Send the pending events and end the response."""
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Do nothing: an ASGI response cannot be cut, and TCP_USER_TIMEOUT cuts its socket."""


class LoadingConnection:
    """A client that watches the model being loaded."""

    kind = "loading"

    def __init__(self, gateway: Gateway, *, known: bool) -> None:
        self._gateway = gateway
        self._known = known
        self._wake = Wake()
        self._silent_since = gateway.clock.monotonic_ms()
        self._heartbeat_due = False
        self._finishing = False

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield an event for every change until the model is ready or has failed, or the worker shuts down."""
        gateway, last = self._gateway, b""
        gateway.state_wakers.add(self._wake.set)
        try:
            with gateway.connected(self):
                while not self._finishing:
                    item, done = views.loading_item(gateway.jobs.engine, known=self._known)
                    chunk = b"data: %b\n\n" % item if item != last else sse.HEARTBEAT if self._heartbeat_due else b""
                    self._heartbeat_due = False
                    if chunk:
                        yield chunk
                        self._silent_since, last = gateway.clock.monotonic_ms(), item
                    if done:
                        yield b"data: [DONE]\n\n"
                        return
                    await self._wake.wait_next()
        finally:
            gateway.state_wakers.discard(self._wake.set)

    def tick(self, now_ms: float) -> None:
        """Send a heartbeat after a silence: a client that is gone is noticed only by writing to it."""
        if now_ms - self._silent_since >= self._gateway.settings.heartbeat_s * 1000:
            self._heartbeat_due = True
            self._wake.set()

    def drain(self) -> None:
        """Do nothing: the stream follows no job."""

    def finish(self) -> None:
        """End the response."""
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Do nothing, as for a job's stream."""
