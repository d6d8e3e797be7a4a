"""Bounds what a request brings, on every route and for every method: an application around the others.

An answer never waits for a body that it does not need. What nobody reads is dropped, not kept, and if the body is not
over when the answer begins, the connection ends with it (RFC 9112, 9.6): what follows on it cannot be told from the
rest of that body.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from worker.transports.front.mounting import App, Message, Send
from worker.transports.wake import Wake

METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
"""A request with neither header has no body (RFC 9112, 6.3)."""

NEEDLESS_BYTES_MAX = 64 << 10
"""The body of a request of another method. It means nothing (RFC 9110, 9.3.1), but some libraries send a small one."""

DISCARD_BYTES_MAX = 64 << 20
"""How much of a body is dropped once it is answered. Without, a reset would overtake the answer."""

DISCARD_TIMEOUT_S = 2.0

Receive: TypeAlias = Callable[[], Awaitable[Message]]


def bounded(app: App, frame_bytes_max: int) -> App:
    """Return an ASGI application that hands an HTTP request to `app` with about `frame_bytes_max` of its body."""

    def bounded_app(scope: Message, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if scope["type"] == "http":
            # One byte more shows that a body is too large.
            kept_max = frame_bytes_max + 1 if scope["method"] in METHODS_WITH_BODY else 0
            intake = Intake(receive, send, kept_max, has_body=any(name in FRAMING for name, _ in scope["headers"]))
            receive, send = intake.receive, intake.send
        return app(scope, receive, send)

    return bounded_app


class Intake:
    """One request. The application gets about `kept_max` bytes of its body, and then the end of it, if it comes."""

    def __init__(self, receive: Receive, send: Send, kept_max: int, *, has_body: bool) -> None:
        self._receive = receive
        self._send = send
        self._kept_max = kept_max
        self._bytes = 0
        self._streams = False
        self._over = Wake()
        if not has_body:
            self._over.set()

    async def receive(self) -> Message:
        """Return the next message that the application needs. A body without bounds ends the request."""
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                self._over.set()
                return message
            before = self._bytes
            self._bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                self._over.set()
                return message if before < self._kept_max else {"type": "http.request", "body": b""}
            if before < self._kept_max:
                return message
            if self._streams and self._bytes > self._kept_max + NEEDLESS_BYTES_MAX:
                # A stream may be long: its request has no right to be, too.
                return {"type": "http.disconnect"}
            if self._bytes > DISCARD_BYTES_MAX:
                self._over.set()

    async def send(self, message: Message) -> None:
        """Send a message of the answer; before the last one, which ends the connection, drop what is left."""
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            self._streams = all(name.lower() != b"content-length" for name, _ in headers)
            if not self._over.is_set():
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        elif not message.get("more_body", False):
            await self._drop_rest()
        await self._send(message)

    async def _drop_rest(self) -> None:
        self._streams = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_TIMEOUT_S):
                await self._over.wait()
