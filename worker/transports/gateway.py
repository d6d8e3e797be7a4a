"""The parts of the worker that all transports share, and the set of open connections.

The app composes one `Gateway` and hands it to each transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from worker.config import Settings
from worker.errors import Forbidden, Overloaded, Unauthorized
from worker.jobs.clock import Clock
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.jobs.narration import Narrate
from worker.jobs.service import Jobs
from worker.operations.base import Limits, Operation
from worker.protocol.frames import sse_url
from worker.protocol.pacing import Timer
from worker.protocol.reading import FrameSource
from worker.protocol.tally import Tally
from worker.transports.access.credentials import Access
from worker.transports.access.origins import Origins
from worker.transports.access.prefixes import Prefixes
from worker.transports.connection import Connection
from worker.transports.correlation import Headers
from worker.transports.delivery import Delivery
from worker.transports.room import Peer, Room

CONNECTIONS_RETRY_MS = 2000
"""When to come back if too many connections are open: nobody knows when one of them will end."""


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Gateway:
    """The parts that transports need, composed by the app.

    `tally` counts what is delivered and refused. `opened` counts the connections ever opened, by kind.
    `state_wakers` are called when the state of the engine changes. `room` counts the TCP connections.
    `prefixes` knows below which path of a proxy a request came.
    """

    jobs: Jobs
    operations: Mapping[str, Operation]
    settings: Settings
    clock: Clock
    narrate: Narrate
    tally: Tally
    frame_source: FrameSource
    limits: Limits
    access: Access
    origins: Origins
    timer: Timer
    connections: set[Connection] = field(default_factory=set)
    opened: Counter[str] = field(default_factory=Counter)
    state_wakers: set[Callable[[], None]] = field(default_factory=set)
    room: Room = field(init=False)
    prefixes: Prefixes = field(init=False)
    delivery: Delivery = field(init=False)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        settings = self.settings
        self.prefixes = Prefixes(settings)
        self.delivery = Delivery(self.clock.monotonic_ms)
        self.room = Room(
            settings.connections_max,
            settings.keyless_room,
            self.clock.monotonic_ms,
            open_to_all=not self.access.required,
        )

    def connect(self, connection: Connection) -> None:
        """Register a connection, so that the app can reach it."""
        self.connections.add(connection)
        self.opened[connection.kind] += 1
        logger.debug("connected", extra={"kind": connection.kind})
        self._empty.clear()

    def disconnect(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        logger.debug("disconnected", extra={"kind": connection.kind})
        if not self.connections:
            self._empty.set()

    @contextlib.contextmanager
    def connected(self, connection: Connection) -> Iterator[None]:
        """Register a connection while it lasts."""
        self.connect(connection)
        try:
            yield
        finally:
            self.disconnect(connection)

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        if self.connections:
            await self._empty.wait()

    def sse_url(self, job: Job) -> str:
        """Return the path of a job's event stream, without a proxy's prefix.

        It carries a ticket, because an EventSource cannot send a key.
        """
        ticket = self.access.ticket(job)
        return sse_url(job.id) if ticket is None else f"{sse_url(job.id)}?ticket={ticket}"

    def admit(self, peer: Peer | None) -> None:
        """Count a TCP connection among the known: a valid credential came on it. Raises Overloaded if they are many."""
        if peer is not None and not self.room.recognise(peer):
            raise Overloaded("Too many connections are open. Try again later.", retry_after_ms=CONNECTIONS_RETRY_MS)

    def recognise(self, headers: Headers, peer: Peer | None) -> Grant | None:
        """Return the grant of a request, None if it shows no credential that is valid, whether it needs one or not.

        With one, its TCP connection counts among the known, if there is room.
        """
        try:
            grant = self.access.identify(headers)
        except (Unauthorized, Forbidden):
            return None
        if grant is not None and peer is not None:
            self.room.recognise(peer)
        return grant
