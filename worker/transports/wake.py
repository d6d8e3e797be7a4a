"""A flag that one reader waits for."""

from __future__ import annotations

import asyncio


class Wake:
    """A flag that one reader waits for. Setting it is cheap and may happen any number of times.

    It has the methods of `asyncio.Event`, which keeps a queue of its readers: 700 bytes, empty or not.
    """

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._is_set

    def set(self) -> None:
        """Set the flag, so that the reader continues."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Clear the flag."""
        self._is_set = False

    async def wait(self) -> None:
        """Wait until the flag is set."""
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def wait_next(self) -> None:
        """Wait until the flag is set, and clear it."""
        await self.wait()
        self.clear()
