"""What every way in shares: the parts of the worker, who may come in, and connections that can be told to finish.

`Gateway` is handed to each transport by the app. The guards refuse before anything is read: the Host must be ours (a
page elsewhere must not reach a worker on loopback through DNS rebinding), a browser's Origin must be ours or listed,
and the API key, where there is one, must be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from worker.config import Settings
from worker.errors import Forbidden, Overloaded, Unauthorized
from worker.jobs.job import Job
from worker.jobs.service import Clock, Jobs
from worker.operations.base import Limits, Operation
from worker.protocol.eventstream import FrameSource, Narrate
from worker.protocol.frames import sse_url

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to

YIELD_EVERY = 64
"""A reader that is far behind lets the others run after so many sends: a send to an idle socket does not wait."""

CONNECTIONS_RETRY_MS = 2000
"""When to come back if there are too many connections: nobody knows when one of them ends."""


class Connection(Protocol):
    """A long-lived connection, as the app sees it. All methods return at once.

    `kind` is websocket, sse, legacy or loading.
    """

    kind: str

    def tick(self, now_ms: float) -> None:
        """Time passes: say something if nothing was said for long, give up if nothing could be sent for long."""
        ...

    def drain(self) -> None:
        """Tell the client, if it can be told, that the worker shuts down once its jobs have ended."""
        ...

    def finish(self) -> None:
        """Send what is there, then close: the jobs have ended."""
        ...

    def abort(self) -> None:
        """Close without sending anything more."""
        ...


@dataclass
class Gateway:
    """The parts that transports need, composed by the app."""

    jobs: Jobs
    operations: Mapping[str, Operation]
    settings: Settings
    clock: Clock
    narrate: Narrate
    frames: FrameSource
    limits: Limits
    connections: set[Connection] = field(default_factory=set)
    state_wakers: set[Callable[[], None]] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def connected(self, connection: Connection) -> Iterator[None]:
        """Let the app know a connection for as long as it lasts."""
        self.connections.add(connection)
        self._empty.clear()
        try:
            yield
        finally:
            self.connections.discard(connection)
            if not self.connections:
                self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        if self.connections:
            await self._empty.wait()

    def authenticate(self, authorization: str | None) -> str:
        """Return the principal behind an Authorization header; without a key it is "local". Raises Unauthorized."""
        key = self.settings.api_key
        if not key:
            return "local"
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("Send the API key in a header: `Authorization: Bearer <key>`.")
        # Compared as bytes: compare_digest refuses text outside ASCII.
        if not hmac.compare_digest(token.strip().encode(errors="replace"), key.encode()):
            raise Unauthorized("The API key is wrong.")
        return "key"

    def sse_url(self, job: Job) -> str:
        """Return where the owner of a job can read it as server-sent events."""
        return sse_url(job.id)

    def check_room(self) -> None:
        """Raise Overloaded if there are as many open connections as there may be."""
        if len(self.connections) >= self.settings.connections_max:
            raise Overloaded("Too many connections are open. Try again later.", retry_after_ms=CONNECTIONS_RETRY_MS)

    def check_host(self, host: str | None) -> None:
        """Raise Forbidden unless the Host header names this worker."""
        settings, name = self.settings, _host_name(host or "")
        allowed = {*settings.hosts_allowed, settings.host.lower()}
        if settings.host in LOOPBACK_HOSTS:
            allowed |= LOOPBACK_HOSTS
        elif settings.host in WILDCARD_HOSTS and not settings.hosts_allowed:
            return
        if name not in allowed:
            raise Forbidden(f"This worker does not answer to the host {name!r}. Allow it with --hosts-allowed.")

    def check_origin(self, origin: str | None, host: str | None) -> None:
        """Raise Forbidden if a browser page of another origin calls. Programs send no Origin and may pass."""
        if origin is None or origin in self.settings.origins_allowed:
            return
        parts = urlsplit(origin)
        default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
        ours, theirs = (host or "").lower(), parts.netloc.lower()
        if not theirs or theirs not in (ours, ours.removesuffix(default_port)):
            raise Forbidden(f"Pages of {origin!r} may not use this worker. Allow them with --origins-allowed.")


class Wake:
    """A flag that a reader waits for. Setting it is cheap and may happen any number of times."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Let the reader go on."""
        self._event.set()

    async def wait_next(self, timeout_s: float | None = None) -> None:
        """Wait until the flag is set, or for `timeout_s`, and take it down."""
        if timeout_s is None:
            await self._event.wait()
        else:
            timer = asyncio.get_running_loop().call_later(timeout_s, self._event.set)
            try:
                await self._event.wait()
            finally:
                timer.cancel()
        self._event.clear()


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
