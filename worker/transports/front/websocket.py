"""`/v1/ws`: one WebSocket connection, one session, one task that receives and one that sends.

A plain ASGI application in front of Quart: Quart's own route costs 8 us more per frame and its receive queue has no
bound. Receiving never waits for sending, so a client that does not read can still cancel.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeAlias

from worker.errors import Forbidden, JobwireError, Overloaded
from worker.jobs.correlation import Correlation
from worker.jobs.limits.principals import Grant
from worker.protocol.closing import CloseCode, CloseConnection
from worker.protocol.frames import PROTOCOL
from worker.protocol.session import Session
from worker.transports.connection import YIELD_EVERY
from worker.transports.correlation import ANSWER_HEADER, correlation_of
from worker.transports.gateway import Gateway
from worker.transports.room import Peer, peer_of
from worker.transports.wake import Wake

PATH = "/v1/ws"
BEARER_PREFIX = "bearer."

SEND_BYTES = 8 * 1024
"""About how much is sent at once. Small, so that the rest for a slow reader can still merge into larger frames."""

CLOSE_TIMEOUT_S = 1.0
"""How long a stalled socket may take to accept the close frame."""

CLOSE_CODES = {Forbidden: CloseCode.FORBIDDEN, Overloaded: CloseCode.OVERLOADED}
"""Close codes for refusals other than a wrong key."""

AsgiMessage: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[AsgiMessage]]
Send: TypeAlias = Callable[[AsgiMessage], Awaitable[None]]
App: TypeAlias = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


logger = logging.getLogger(__name__)


def route(gateway: Gateway, otherwise: App) -> App:
    """Return an ASGI application that serves WebSockets at PATH and leaves everything else to `otherwise`."""

    async def app(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["path"] == scope.get("root_path", "") + PATH:
            await _serve(gateway, scope, receive, send)
        else:
            await otherwise(scope, receive, send)

    return app


async def _serve(gateway: Gateway, scope: AsgiMessage, receive: Receive, send: Send) -> None:
    """Accept and run, or accept and close: a page sees a close code only then (a refused handshake is 1006)."""
    await receive()
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    offered = list(scope["subprotocols"])
    correlation, peer = correlation_of(headers), peer_of(scope)
    echo = [(ANSWER_HEADER.lower().encode(), correlation.correlation_id.encode())]
    await send({"type": "websocket.accept", "subprotocol": _pick_subprotocol(offered), "headers": echo})
    try:
        grant = _identify(gateway, headers, offered, peer)
    except CloseConnection as close:
        log_ids = {"correlation_id": correlation.correlation_id}
        logger.info("refused", extra={"close_code": int(close.code), "path": PATH, **log_ids})
        await send(_close_message(close))
        return
    prefix = scope.get("root_path", "")
    connection = WebSocketConnection(gateway, grant, correlation, peer, prefix, receive, send)
    with gateway.connected(connection):
        await connection.run()


def _pick_subprotocol(offered: list[str]) -> str | None:
    """Return our version if it is offered, else the first one of ours, to be closed with a readable code; no bearer."""
    if PROTOCOL in offered:
        return PROTOCOL
    return next((name for name in offered if name.startswith("jobwire.")), None)


def _identify(gateway: Gateway, headers: dict[str, str], offered: list[str], peer: Peer | None) -> Grant | None:
    """Return the grant of a connection, or None if an auth frame must bring it. Raises CloseConnection to refuse it."""
    versions = [name for name in offered if name.startswith("jobwire.")]
    try:
        gateway.origins.check_host(headers.get("host"))
        gateway.origins.check_origin(headers.get("origin"), headers.get("host"))
        # A page cannot set headers: without any credential it may send one in its first frame.
        grant = gateway.access.identify(headers, _offered_credential(offered))
        if grant is not None:
            gateway.admit(peer)
    except JobwireError as error:
        gateway.tally.refusals[error.code] += 1
        raise CloseConnection(CLOSE_CODES.get(type(error), CloseCode.UNAUTHORIZED), error.detail) from None
    if versions and PROTOCOL not in versions:
        raise CloseConnection(CloseCode.VERSION, f"This worker speaks {PROTOCOL}.")
    return grant


def _offered_credential(offered: list[str]) -> str | None:
    """Return the credential that a page offers as subprotocol `bearer.<base64url>`, since it cannot set headers."""
    encoded = next((name.removeprefix(BEARER_PREFIX) for name in offered if name.startswith(BEARER_PREFIX)), None)
    if encoded is None:
        return None
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode(errors="replace")
    except (binascii.Error, ValueError):
        return encoded


class WebSocketConnection:
    """Moves messages between the socket and a session."""

    kind = "websocket"

    def __init__(
        self,
        gateway: Gateway,
        grant: Grant | None,
        correlation: Correlation,
        peer: Peer | None,
        prefix: str,
        receive: Receive,
        send: Send,
    ) -> None:
        self._gateway = gateway
        self._peer = peer
        self._receive = receive
        self._send = send
        self._wake = Wake()
        self._session = Session(gateway, grant, self._authenticate, self._wake.set, correlation, prefix)
        self._closing: CloseConnection | None = None
        self._finishing = False
        self._stalled = False
        self._sending_since: float | None = None
        self._silent_since = gateway.clock.monotonic_ms()
        self._writer: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until either side closes."""
        self._session.greet(self._gateway.clock.monotonic_ms())
        if self._gateway.jobs.draining:
            self.drain()
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._receive_all())
                self._writer = tasks.create_task(self._send_all())
                self._writer.add_done_callback(lambda _: reader.cancel())
        finally:
            self._session.close()
        if self._stalled:
            await self._send_stalled()

    async def _receive_all(self) -> None:
        """Hand every message to the session. Never wait for the socket's write side."""
        while self._closing is None:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                self.abort()
                return
            data = message.get("text")
            try:
                self._session.receive(message["bytes"] if data is None else data, self._gateway.clock.monotonic_ms())
            except CloseConnection as close:
                self._close(close)

    async def _send_all(self) -> None:
        """Send the session's frames as fast as the socket accepts them.

        When it is slow, `pull` merges what has collected into larger frames.
        """
        monotonic_ms, session, sent = self._gateway.clock.monotonic_ms, self._session, 0
        while self._closing is None:
            now_ms = monotonic_ms()
            data = session.pull(now_ms)
            if data is None:
                if self._finishing:
                    self._closing = CloseConnection(CloseCode.RESTART, "The worker shuts down.")
                    break
                await self._wake.wait_next()
                continue
            # `frames` is ours: see StrictStream.app_send, which writes them past Hypercorn.
            await self._timed_send({"type": "websocket.send", "frames": self._gather(data, now_ms)}, now_ms)
            sent += 1
            if sent % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        await self._timed_send(_close_message(self._closing), monotonic_ms())

    def _gather(self, first: bytes, now_ms: float) -> list[bytes]:
        """Add the other frames that are ready now, up to about SEND_BYTES: one system call instead of many."""
        frames, size = [first], len(first)
        while size < SEND_BYTES and (data := self._session.pull(now_ms)) is not None:
            frames.append(data)
            size += len(data)
        return frames

    async def _timed_send(self, message: AsgiMessage, now_ms: float) -> None:
        self._sending_since = now_ms
        await self._send(message)
        self._silent_since, self._sending_since = now_ms, None

    async def _send_stalled(self) -> None:
        """Send the close code to a client that did not read, in case it reads again. Its socket may accept nothing."""
        close = CloseConnection(CloseCode.STALLED, "The client does not read. Connect again, and resume.")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._send(_close_message(close))

    def tick(self, now_ms: float) -> None:
        """Send a pong after a silence; close when the credential is no longer valid or the socket is stalled."""
        settings = self._gateway.settings
        if self._sending_since is not None:
            if now_ms - self._sending_since >= settings.stall_timeout_s * 1000:
                self._stalled = True
                self.abort()
        elif now_ms - self._silent_since >= settings.heartbeat_s * 1000:
            self._session.heartbeat()
        try:
            self._session.check_time(now_ms)
            if self._session.grant is not None:
                self._session.renew(self._gateway.access.current(self._session.grant))
        except CloseConnection as close:
            self._close(close)

    def _authenticate(self, credential: str) -> Grant:
        """Return the grant of a credential in a frame. Raises Unauthorized, and CloseConnection if there is no room."""
        grant = self._gateway.access.authenticate(credential)
        try:
            self._gateway.admit(self._peer)
        except Overloaded as error:
            self._gateway.tally.refusals[error.code] += 1
            raise CloseConnection(CloseCode.OVERLOADED, error.detail) from None
        return grant

    def drain(self) -> None:
        """Send goaway."""
        self._session.goaway()

    def finish(self) -> None:
        """Send the pending frames and close with 1012."""
        self._session.finish()
        self._finishing = True
        self._wake.set()

    def abort(self) -> None:
        """Stop writing. TCP_USER_TIMEOUT cuts the socket: ASGI cannot."""
        if self._writer is not None:
            self._writer.cancel()

    def _close(self, close: CloseConnection) -> None:
        """Close with a code, before anything else is sent."""
        self._closing = close
        self._wake.set()


def _close_message(close: CloseConnection) -> AsgiMessage:
    return {"type": "websocket.close", "code": close.code, "reason": close.reason}
