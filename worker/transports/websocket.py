"""`/v1/ws`: one WebSocket connection, one session, one reader and one writer.

A plain ASGI application in front of Quart: Quart's own route costs 8 us more per frame and its receive queue has no
bound. The reader never waits for the writer, so a cancel is heard from a client that does not read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeAlias

from worker.errors import Forbidden, Overloaded, RequestError
from worker.protocol.frames import PROTOCOL
from worker.protocol.session import Close, CloseCode, Session
from worker.transports.base import YIELD_EVERY, Gateway, Wake

PATH = "/v1/ws"
BEARER_PREFIX = "bearer."

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


def route(gateway: Gateway, otherwise: App) -> App:
    """Return an ASGI application that serves WebSockets at PATH and leaves everything else to `otherwise`."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["path"] == PATH:
            await _serve(gateway, scope, receive, send)
        else:
            await otherwise(scope, receive, send)

    return app


async def _serve(gateway: Gateway, scope: Message, receive: Receive, send: Send) -> None:
    """Accept, so that a page can see a close code at all (a refused handshake is 1006 to it), and run or close."""
    await receive()
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    offered = list(scope["subprotocols"])
    await send({"type": "websocket.accept", "subprotocol": _pick_subprotocol(offered)})
    try:
        principal = _admit(gateway, headers, offered)
    except Close as close:
        await send({"type": "websocket.close", "code": close.code, "reason": close.reason})
        return
    connection = WebSocketConnection(gateway, principal, receive, send)
    with gateway.connected(connection):
        await connection.run()


def _pick_subprotocol(offered: list[str]) -> str | None:
    """Our version if it is offered; else the first that names us, to be closed with a readable code; never a bearer."""
    if PROTOCOL in offered:
        return PROTOCOL
    return next((name for name in offered if name.startswith("jobwire.")), None)


def _admit(gateway: Gateway, headers: dict[str, str], offered: list[str]) -> str:
    """Return the principal of a connection. Raises Close if it may not go on."""
    versions = [name for name in offered if name.startswith("jobwire.")]
    try:
        gateway.check_host(headers.get("host"))
        gateway.check_origin(headers.get("origin"), headers.get("host"))
        principal = gateway.authenticate(_authorization(headers, offered))
        gateway.check_room()
    except Forbidden as error:
        raise Close(CloseCode.FORBIDDEN, error.detail) from None
    except RequestError as error:
        raise Close(CloseCode.UNAUTHORIZED, error.detail) from None
    except Overloaded as error:
        raise Close(CloseCode.OVERLOADED, error.detail) from None
    if versions and PROTOCOL not in versions:
        raise Close(CloseCode.VERSION, f"This worker speaks {PROTOCOL}.")
    return principal


def _authorization(headers: dict[str, str], offered: list[str]) -> str | None:
    """The Authorization header, or the key that a browser can only offer as `bearer.<base64url>` subprotocol."""
    if "authorization" in headers:
        return headers["authorization"]
    token = next((name.removeprefix(BEARER_PREFIX) for name in offered if name.startswith(BEARER_PREFIX)), None)
    if token is None:
        return None
    try:
        return "Bearer " + base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode(errors="replace")
    except (binascii.Error, ValueError):
        return "Bearer " + token


class WebSocketConnection:
    """Moves messages between the socket and a session."""

    def __init__(self, gateway: Gateway, principal: str, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._receive = receive
        self._send = send
        self._wake = Wake()
        self._session = Session(
            gateway.jobs,
            gateway.operations,
            gateway.settings,
            gateway.limits,
            gateway.frames,
            principal,
            self._wake.set,
        )
        self._closing: Close | None = None
        self._finishing = False
        self._sending_since: float | None = None
        self._silent_since = gateway.clock.monotonic_ms()
        self._writer: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until either side closes."""
        self._session.greet()
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read())
                self._writer = tasks.create_task(self._write())
                self._writer.add_done_callback(lambda _: reader.cancel())
        finally:
            self._session.close()

    async def _read(self) -> None:
        """Hand every message to the session. Never waits for the socket's write side."""
        while self._closing is None:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                self.abort()
                return
            data = message.get("text")
            try:
                self._session.receive(message["bytes"] if data is None else data, self._gateway.clock.monotonic_ms())
            except Close as close:
                self._closing = close
                self._wake.set()

    async def _write(self) -> None:
        """Send what the session has, as fast as the socket takes it; frames grow by themselves when it is slow."""
        sent = 0
        while self._closing is None:
            data = self._session.pull()
            if data is None:
                if self._finishing:
                    self._closing = Close(CloseCode.RESTART, "The worker shuts down.")
                    break
                await self._wake.wait_next()
                continue
            await self._timed_send({"type": "websocket.send", "text": data.decode()})
            sent += 1
            if sent % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        await self._timed_send({"type": "websocket.close", "code": self._closing.code, "reason": self._closing.reason})

    async def _timed_send(self, message: Message) -> None:
        self._sending_since = self._gateway.clock.monotonic_ms()
        await self._send(message)
        self._silent_since, self._sending_since = self._sending_since, None

    def tick(self, now_ms: float) -> None:
        """Say pong after a silence; give up on a socket that takes nothing for `stall_timeout_s`."""
        settings = self._gateway.settings
        if self._sending_since is not None:
            if now_ms - self._sending_since >= settings.stall_timeout_s * 1000:
                self.abort()
        elif now_ms - self._silent_since >= settings.heartbeat_s * 1000:
            self._session.heartbeat()

    def finish(self) -> None:
        """Send what is there and close with 1012."""
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Stop to write; TCP_USER_TIMEOUT takes the socket down, ASGI cannot."""
        if self._writer is not None:
            self._writer.cancel()
