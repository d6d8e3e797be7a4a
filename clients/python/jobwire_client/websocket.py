"""All jobs over one WebSocket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from .connection import Connection, dial
from .errors import ConnectionFailed, Cut, JobwireError
from .events import Frame
from .options import Settings
from .retry import STABLE_S
from .subscription import Subscription, Subscriptions

logger = logging.getLogger(__name__)


class WebSocketTransport:
    """All jobs over one WebSocket, which is reopened after a cut as soon as a job needs it.

    After a goaway there may be a second one: the old one keeps its jobs until they end, or it does.
    """

    name = "websocket"

    def __init__(self, settings: Settings, subscriptions: Subscriptions, fail: Callable[[JobwireError], None]) -> None:
        self.hello: Frame = {}
        self._settings = settings
        self._subscriptions = subscriptions
        self._fail = fail
        self._retry = settings.retry()
        self._connections: list[Connection] = []
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        connection = await self._connect()
        self._adopt(connection)
        self._spawn(self._run(connection))

    def notify(self, subscription: Subscription) -> None:
        connection = self._carrier(subscription) or self._current
        if connection is None:
            self._wanted.set()
        else:
            connection.notify(subscription)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            await connection.close()

    @property
    def _current(self) -> Connection | None:
        """The connection for new jobs."""
        return next((connection for connection in self._connections if not connection.gone.done()), None)

    def _carrier(self, subscription: Subscription) -> Connection | None:
        job_id = subscription.job_id
        return next((carrier for carrier in self._connections if carrier.jobs.get(job_id) is subscription), None)

    @property
    def _unconnected(self) -> list[Subscription]:
        return [job for job in self._subscriptions.values() if self._carrier(job) is None]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, connection: Connection) -> None:
        """Replace the connection when it accepts no new jobs and a job needs one."""
        try:
            while True:
                reason = await connection.gone
                if connection.lasted_s > STABLE_S:
                    self._retry.clear()
                connection = await self._reconnect(reason)
                self._adopt(connection)
        except JobwireError as error:
            self._fail(error)
        except Exception as bug:
            logger.exception("the client failed")
            self._fail(ConnectionFailed(f"The client failed: {bug!r}", "client_failed"))

    async def _reconnect(self, reason: Exception) -> Connection:
        """Connect again. Raises ConnectionFailed when that is useless or the outage has lasted too long."""
        while True:
            if not (isinstance(reason, Cut) or self._may_have_another_key(reason)):
                raise reason
            delay_s = self._retry.delay_s(reason, reason.retry_s if isinstance(reason, Cut) else 0.0)
            logger.info("reconnecting in %.2f s: %s", delay_s, reason)
            await asyncio.sleep(delay_s)
            while not self._unconnected:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                return await self._connect()
            except Cut as cut:
                reason = cut

    async def _connect(self) -> Connection:
        """Connect, with another key if the first one is refused. Raises Cut, ConnectionFailed."""
        try:
            socket, hello = await dial(self._settings)
        except ConnectionFailed as failure:
            if not self._may_have_another_key(failure):
                raise
            socket, hello = await dial(self._settings)
        return Connection(socket, hello, self._settings, self._subscriptions, self._retry)

    def _may_have_another_key(self, reason: Exception) -> bool:
        return self._settings.renews and isinstance(reason, ConnectionFailed) and reason.code == "unauthorized"

    def _adopt(self, connection: Connection) -> None:
        """Hand a new connection the jobs that have none."""
        self.hello = connection.hello
        unconnected = self._unconnected
        self._connections.append(connection)
        for subscription in unconnected:
            connection.notify(subscription)
        self._spawn(self._carry(connection))

    async def _carry(self, connection: Connection) -> None:
        """Serve the jobs of a connection until it ends; then move them to another one."""
        reason: Exception = Cut("The client is closed")
        try:
            reason = await connection.serve()
        finally:
            self._connections.remove(connection)
            for subscription in connection.jobs.values():
                subscription.detach()
                self._subscriptions.forget_if_over(subscription)
            connection.go(reason)
            self._wanted.set()
            if (current := self._current) is not None:
                for subscription in self._unconnected:
                    current.notify(subscription)
            await connection.close()
