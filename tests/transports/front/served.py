"""The front on a real socket, in this process: any application, any table of WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from tests.conformance.rawsocket import RawSocket
from tests.e2e.raw import read_head
from tests.transports.keys import House
from worker.config import Settings
from worker.protocol.closing import CloseConnection
from worker.transports.front import listener, sockets
from worker.transports.front.websockets.jobwire import PATH, Jobwire
from worker.transports.front.websockets.sessions import Opening, Table

App: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
Connection: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PATIENCE_S = 10.0
ECHO = "/v1/echo"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with its method and path: an ASGI application."""
    while (await receive()).get("more_body"):
        pass
    body = f"{scope['method']} {scope['path']}".encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Echo:
    """A dialect that sends back what it gets, after a greeting, and has words of its own for every end."""

    stalled = CloseConnection(4998, "asleep")
    finished = CloseConnection(4999, "over")

    def choose(self, offered: tuple[str, ...]) -> str | None:
        """Speak whatever is offered first."""
        return offered[0] if offered else None

    def open(self, opening: Opening, wake: Callable[[], None]) -> EchoSession:
        """Refuse those who say so."""
        if "refuse" in opening.offered:
            raise CloseConnection(4997, "refused")
        return EchoSession(wake)


class EchoSession:
    """One conversation."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.waiting = [b"hello"]
        self.closed = False
        wake()

    def receive(self, data: str | bytes, _: float) -> None:
        """Queue it; `close` and `break` do what they say."""
        if data == "close":
            raise CloseConnection(4996, "as you wish")
        if data == "break":
            raise RuntimeError("as you wish")
        self.waiting.append(data.encode() if isinstance(data, str) else data)
        self.wake()

    def pull(self, _: float) -> bytes | None:
        """Return the oldest."""
        return self.waiting.pop(0) if self.waiting else None

    def tick(self, now_ms: float, silent_ms: float) -> None:
        """Do nothing."""

    def drain(self) -> None:
        """Say so."""
        self.waiting.append(b"draining")
        self.wake()

    def finish(self) -> None:
        """Hold nothing back, as ever."""

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Front:
    """A front that is being served. `shut_down` lets it end."""

    def __init__(self, house: House, port: int) -> None:
        self.house = house
        self.port = port
        self.over = asyncio.Event()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A TCP connection for the length of a `with` block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@asynccontextmanager
async def serving(
    app: App = hello, table: Table | None = None, *, jobwire: bool = False, **settings: Any
) -> AsyncIterator[Front]:
    """Serve an application and a table as the worker is served."""
    listening = sockets.open_socket(Settings(port=0, send_buffer_bytes=4096))
    front = Front(House(**settings), listening.getsockname()[1])

    async def trigger() -> None:
        await front.over.wait()

    async with asyncio.TaskGroup() as tasks:
        served = {ECHO: Echo()} if table is None else table
        if jobwire:
            served = {PATH: Jobwire(front.house.gateway)}
        tasks.create_task(listener.serve(app, served, front.house.gateway, listening, trigger))
        try:
            yield front
        finally:
            front.over.set()


async def upgraded(connection: Connection) -> RawSocket:
    """Read the answer to a handshake that was sent, and return the socket."""
    status, _ = await asyncio.wait_for(read_head(connection[0]), PATIENCE_S)
    assert status == 101
    return RawSocket(*connection)
