"""A connection through a proxy that cuts after so many bytes, of what the client says or of what the worker says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.support.server import Server


@dataclass(frozen=True)
class Cut:
    """Where: None lets everything through that way."""

    up: int | None = None
    down: int | None = None


@asynccontextmanager
async def proxied(server: Server) -> AsyncIterator[CuttingProxy]:
    """A proxy before a worker for the length of a `with` block."""
    proxy = CuttingProxy(server)
    listening = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        await proxy.stop()


class CuttingProxy:
    """Cuts every connection where `cut` says. `passed` counts what the last one let through, up and down."""

    def __init__(self, server: Server) -> None:
        self.server_port = server.port
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.cut = Cut()
        self.passed = [0, 0]

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        cut, passed = self.cut, [0, 0]
        self.passed = passed
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        ways = (reader, up_writer, cut.up, 0), (up_reader, writer, cut.down, 1)
        pumps = [asyncio.create_task(_pump(*way, passed)) for way in ways]
        try:
            # Cancelled in the end: streams of Python 3.11 complain of a task that says so.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # What the worker said up to the cut still arrives at the client; the worker sees a reset.
            up_writer.transport.abort()
            writer.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def stop(self) -> None:
        """Cut what is left."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None, way: int, passed: list[int]
) -> None:
    with contextlib.suppress(ConnectionError):
        while most is None or passed[way] < most:
            data = await reader.read(65_536 if most is None else most - passed[way])
            if not data:
                return
            writer.write(data)
            await writer.drain()
            passed[way] += len(data)
