"""Messages of a client that the application has not received yet. Every connection has an inbox, so it is small.

Hypercorn's is an asyncio.Queue: 3 KiB for as long as a connection lasts, although it is nearly always empty.
"""

from __future__ import annotations

import asyncio
from typing import Any

from worker.transports.wake import Wake


class Inbox:
    """A queue of at most `messages_max` messages, with one reader. Writers wait while it is full.

    When the reader is done the inbox is closed: what is put then is thrown away, and nobody waits any longer.
    """

    __slots__ = ("_closed", "_messages", "_room", "_wake")

    def __init__(self, messages_max: int) -> None:
        self._closed = False
        self._messages: list[Any] = []
        self._room = asyncio.Semaphore(messages_max)
        self._wake = Wake()

    async def put(self, message: Any) -> None:
        """Append a message as soon as the queue is not full."""
        await self._room.acquire()
        if self._closed:
            self._room.release()
            return
        self._messages.append(message)
        self._wake.set()

    async def get(self) -> Any:
        """Remove and return the oldest message as soon as there is one."""
        while not self._messages:
            await self._wake.wait_next()
        self._room.release()
        return self._messages.pop(0)

    def close(self) -> None:
        """Throw away what is there, and what will come."""
        self._closed = True
        self._messages.clear()
        # The first writer that waits lets the next one in.
        self._room.release()
