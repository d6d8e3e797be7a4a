"""What a client has said and the application has not taken yet. Every connection has one, so it is small.

Hypercorn's is an asyncio.Queue: 3 KiB for as long as a connection lasts, for what is empty nearly always.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.asyncio import task_group
from hypercorn.config import Config

from worker.transports.wake import Wake


class Inbox:
    """A queue with room for so many messages. One takes them out; those who put them in wait for room."""

    __slots__ = ("_messages", "_room", "_wake")

    def __init__(self, messages_max: int) -> None:
        self._messages: list[Any] = []
        self._room = asyncio.Semaphore(messages_max)
        self._wake = Wake()

    async def put(self, message: Any) -> None:
        """Put a message in as soon as there is room."""
        await self._room.acquire()
        self._messages.append(message)
        self._wake.set()

    async def get(self) -> Any:
        """Take the oldest message out as soon as there is one."""
        while not self._messages:
            await self._wake.wait_next()
        self._room.release()
        return self._messages.pop(0)


async def spawn_app(
    group: task_group.TaskGroup, app: Any, config: Config, scope: Any, send: Any
) -> Callable[[Any], Awaitable[None]]:
    """Run an ASGI application for one request; return what hands it messages. It needs no threads, as WSGI ones do."""
    inbox = Inbox(config.max_app_queue_size)
    handle = task_group._handle  # noqa: SLF001 - it has no public name
    group.spawn(handle, app, config, scope, inbox.get, send, None, None)
    return inbox.put
