"""A proxy before a worker that cuts each connection after some bytes of what the worker says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

CHUNK_BYTES = 65_536


@contextlib.contextmanager
def cutting(worker_url: str, cuts: Iterable[int], port: int = 0) -> Iterator[str]:
    """Yield the URL of a proxy. Each of `cuts` is for one connection, in order; those after them are left whole."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    proxy = _Proxy(worker_url, cuts, port)
    try:
        yield asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class _Proxy:
    def __init__(self, worker_url: str, cuts: Iterable[int], port: int) -> None:
        self._upstream = urlsplit(worker_url)
        self._cuts = iter(cuts)
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        cut = next(self._cuts, None)
        up_reader, up_writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        up = asyncio.create_task(_pump(reader, up_writer, None))
        try:
            await _pump(up_reader, writer, cut)
        finally:
            up.cancel()
            await asyncio.wait([up])
            up_writer.transport.abort()
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_max: int | None) -> None:
    """Pass bytes on until the source ends, which is passed on too, or until so many are through."""
    passed = 0
    with contextlib.suppress(ConnectionError):
        while bytes_max is None or passed < bytes_max:
            data = await reader.read(CHUNK_BYTES if bytes_max is None else min(CHUNK_BYTES, bytes_max - passed))
            if not data:
                writer.close()
                return await writer.wait_closed()
            writer.write(data)
            await writer.drain()
            passed += len(data)
    return None
