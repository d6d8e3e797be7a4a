"""What every way in shares: the parts of the worker, and connections that can be told to finish.

`Gateway` is handed to each transport by the app.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from worker.config import Settings
from worker.errors import Overloaded
from worker.jobs.clock import Clock
from worker.jobs.job import Job
from worker.jobs.narration import Narrate
from worker.jobs.service import Jobs
from worker.operations.base import Limits, Operation
from worker.protocol.frames import sse_url
from worker.protocol.pacing import Timer
from worker.protocol.reading import FrameSource
from worker.transports.access.credentials import Access
from worker.transports.connection import Connection

CONNECTIONS_RETRY_MS = 2000
"""When to come back if there are too many connections: nobody knows when one of them ends."""


logger = logging.getLogger(__name__)


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
    access: Access
    timer: Timer
    connections: set[Connection] = field(default_factory=set)
    # Connections ever opened, by kind.
    opened: Counter[str] = field(default_factory=Counter)
    state_wakers: set[Callable[[], None]] = field(default_factory=set)
    _empty: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def connected(self, connection: Connection) -> Iterator[None]:
        """Let the app know a connection for as long as it lasts."""
        self.connections.add(connection)
        self.opened[connection.kind] += 1
        logger.debug("connected", extra={"kind": connection.kind})
        self._empty.clear()
        try:
            yield
        finally:
            self.connections.discard(connection)
            logger.debug("disconnected", extra={"kind": connection.kind})
            if not self.connections:
                self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        if self.connections:
            await self._empty.wait()

    def sse_url(self, job: Job) -> str:
        """Return where a job can be read as server-sent events. An EventSource sends no key: a ticket is in the URL."""
        ticket = self.access.ticket(job)
        return sse_url(job.id) if ticket is None else f"{sse_url(job.id)}?ticket={ticket}"

    def check_room(self) -> None:
        """Raise Overloaded if there are as many open connections as there may be."""
        if len(self.connections) >= self.settings.connections_max:
            raise Overloaded("Too many connections are open. Try again later.", retry_after_ms=CONNECTIONS_RETRY_MS)
