"""Hypercorn's side of a connection, on a stream of ours."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import h11
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.typing import ConnectionState

from worker.transports.front.hypercorn.http import StrictProtocol
from worker.transports.front.hypercorn.inbox import Inbox
from worker.transports.front.overtime import Overtime
from worker.transports.front.stream import Stream
from worker.transports.room import STATE_NAME, Peer


class SmallTasks(TaskGroup):
    """The tasks of one connection. Their inboxes are small."""

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        """Run an ASGI application for one request; return the function that delivers messages to it."""
        inbox = Inbox(config.max_app_queue_size)
        self.spawn(_run, app, config, scope, inbox, send)
        return inbox.put


async def _run(app: Any, config: Config, scope: Any, inbox: Inbox, send: Any) -> None:
    """Run an application. Reading must not wait for one that has returned, or the connection would stay for ever."""
    try:
        await app(scope, inbox.get, send)
    except Exception:
        await config.log.exception("Error in ASGI Framework")
    finally:
        inbox.close()
        await send(None)


class HttpConnection(TCPServer):
    """One connection, served in a task that `begin` makes. `on_idle` is called after each complete answer."""

    def __init__(
        self,
        app: Any,
        config: Config,
        context: WorkerContext,
        begin: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        peer: Peer,
        stream: Stream,
        overtime: Overtime,
        on_idle: Callable[[], None],
    ) -> None:
        state = {STATE_NAME: peer}
        super().__init__(app, asyncio.get_running_loop(), config, context, state, stream, stream)  # type: ignore[arg-type]
        self._stream = stream
        self._overtime = overtime
        self._on_idle = on_idle
        self._http: StrictProtocol | None = None
        self._task = begin(self._serve())

    @property
    def unread(self) -> bool:
        """Whether bytes of a next request were received already."""
        assert self._http is not None, "it serves"
        data, _ = self._http.connection.trailing_data
        return bool(data or self._stream.unread)

    def leave(self) -> None:
        """End, between two requests, and let the socket be."""
        self._stream.take_back()
        self._task.cancel()

    async def _serve(self) -> None:
        """Run. A bug ends this connection, and no other."""
        try:
            await self.run()
        except Exception:
            await self.config.log.exception("Error in an HTTP connection")
        finally:
            # Protocol and server refer to each other. What was received and not read would stay until the garbage
            # collector comes, which is rare, and a refused request leaves much of it.
            if self._http is not None:
                vars(self._http).clear()

    async def run(self) -> None:
        """Serve until either side closes."""
        transport = self._stream.transport
        # A client that is gone already has no address.
        client, server = ((transport.get_extra_info(name) or ("", 0))[:2] for name in ("peername", "sockname"))
        try:
            async with SmallTasks(self.loop) as tasks:
                self._task_group = tasks
                self._http = StrictProtocol(
                    transport, self._overtime, self.app, self.config, self.context, tasks, ConnectionState(self.state),
                    False, client, server, self.protocol_send,
                )  # fmt: skip
                self.protocol = self._http  # type: ignore[assignment]  # without the wrapper, which knows HTTP/2
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    async def _read_data(self) -> None:
        """Read until the client is gone. Hypercorn would keep the socket for the rest of its idle time."""
        await super()._read_data()
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Pass on what Hypercorn has to send, and note when a request is over."""
        if isinstance(event, Updated) and event.idle:
            self._on_idle()
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError):
            # h11's errors lead to themselves by their tracebacks, and with them to all that was received.
            error.__traceback__ = None
        await super().protocol_send(event)
