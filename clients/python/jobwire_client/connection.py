"""One WebSocket, and the jobs that it carries."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from functools import partial

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.typing import Subprotocol

from .errors import ConnectionFailed, Cut, NoKey
from .events import Frame, event_of
from .options import Settings
from .retry import Retry
from .subscription import Subscription, Subscriptions
from .wire import CONNECT_TIMEOUT_S, HEARTBEAT_S, parse, refusal_of

CLOSE_TIMEOUT_S = 1.0

REFRESH_AT = 0.8
"""The share of a key's time to live after which the next key is requested."""

REFRESH_AGAIN_AT = 0.05
"""The same after an attempt that failed."""

EXPIRES_S_MIN = 0.5
"""The meaning of a time to live of 0 s: the worker sends whole seconds."""

FRAME_BYTES_MAX = 16 << 20
"""The limit for received frames, far above the worker's own."""

CLOSE_CODES = {4400: "protocol_abuse", 4401: "unauthorized", 4403: "forbidden", 4406: "version", 4408: "auth_timeout"}

logger = logging.getLogger(__name__)


class Connection:
    """One WebSocket after the hello, and the jobs that it carries."""

    def __init__(
        self, socket: ClientConnection, hello: Frame, settings: Settings, subscriptions: Subscriptions, retry: Retry
    ) -> None:
        self.hello = hello
        self.jobs = Subscriptions()
        self.gone: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done when the connection accepts no more new jobs; the result is the reason."""
        self._since = time.monotonic()
        self._socket = socket
        self._settings = settings
        self._subscriptions = subscriptions
        self._retry = retry
        self._to_send: dict[Subscription, None] = {}  # a set in order
        self._answers: dict[str, tuple[Subscription, Callable[[Frame], None]]] = {}  # by ref
        self._refs = 0
        self._wake = asyncio.Event()

    @property
    def lasted_s(self) -> float:
        return time.monotonic() - self._since

    def go(self, reason: Exception) -> None:
        """Accept no new jobs from now on."""
        if not self.gone.done():
            self.gone.set_result(reason)

    def notify(self, subscription: Subscription) -> None:
        """Send the frames of a subscription."""
        self.jobs[subscription.job_id] = subscription
        self._to_send[subscription] = None
        self._wake.set()

    async def serve(self) -> Exception:
        """Serve until the connection ends, and return the reason."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                tasks.create_task(self._write())
                tasks.create_task(self._keep_authorized())
        except* Exception as group:
            end = group.exceptions[0]
        return reason_of(end)

    async def close(self) -> None:
        await self._socket.close()

    async def _read(self) -> None:
        silence_s = 2 * self._limit("heartbeat_s", HEARTBEAT_S)
        while self.jobs or not self.gone.done():
            try:
                async with asyncio.timeout(silence_s):
                    message = await self._socket.recv()
            except TimeoutError:
                raise Cut(f"Nothing was received for {silence_s:g} s") from None
            self._receive(parse(message))
        raise Cut("All jobs of this connection are over")

    def _receive(self, frame: Frame) -> None:
        kind, subscription = frame.get("type"), self.jobs.get(frame.get("job_id", ""))
        if kind in ("accepted", "error"):
            subscription, answered = self._answers.pop(frame.get("ref", ""), (None, None))
            if answered is not None:
                answered(frame)
            elif kind == "error":
                logger.warning("the worker reports: %s", frame.get("error"))
        elif kind == "goaway":
            self.go(Cut(f"The worker goes away: {frame.get('reason')}", frame.get("retry_ms", 0) / 1000))
        elif subscription is not None and (event := event_of(frame)) is not None:
            self._retry.clear()
            subscription.receive(event)
        if subscription is not None:
            self._forget_if_over(subscription)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._to_send:
                subscription = next(iter(self._to_send))
                del self._to_send[subscription]
                window_max = self._limit("max_window", float("inf"))
                for frame in subscription.frames(partial(self._ref, subscription), window_max):
                    await self._send(frame)
                self._forget_if_over(subscription)

    async def _send(self, frame: Frame) -> None:
        message = json.dumps(frame)
        bytes_max = self._limit("max_frame_bytes", FRAME_BYTES_MAX)
        if len(message) <= bytes_max:  # it is ASCII
            return await self._socket.send(message)
        # The worker would close the connection of all jobs, so the request is refused here.
        detail = f"Expected a request of at most {bytes_max:.0f} bytes, got {len(message)}"
        problem = {"code": "frame_too_large", "status": 413, "detail": detail}
        return self._receive({"type": "error", "ref": frame.get("ref"), "error": problem})

    async def _keep_authorized(self) -> None:
        """Send another key before the current one expires."""
        share = REFRESH_AT
        while self._settings.renews and (expires_s := self.hello.get("expires_in")) is not None:
            await asyncio.sleep(share * (expires_s or EXPIRES_S_MIN))
            try:
                key = await self._settings.key()
            except NoKey as failure:
                logger.warning("%s", failure)
                share = REFRESH_AGAIN_AT
            else:
                await self._socket.send(json.dumps({"type": "auth", "token": key}))
                share = REFRESH_AT

    def _forget_if_over(self, subscription: Subscription) -> None:
        self.jobs.forget_if_over(subscription)
        self._subscriptions.forget_if_over(subscription)

    def _ref(self, subscription: Subscription, answered: Callable[[Frame], None]) -> str:
        self._refs += 1
        self._answers[str(self._refs)] = subscription, answered
        return str(self._refs)

    def _limit(self, name: str, default: float) -> float:
        return float(self.hello.get("limits", {}).get(name, default))


async def dial(settings: Settings) -> tuple[ClientConnection, Frame]:
    """Open a WebSocket; return it and the worker's hello. Raises Cut, ConnectionFailed."""
    key = await settings.key()
    try:
        socket = await open_websocket(
            settings.base.replace("http", "ws", 1) + "/v1/ws",
            subprotocols=[Subprotocol("jobwire.v1")],
            additional_headers={"Authorization": f"Bearer {key}"} if key else {},
            compression=None,  # merging frames saves more, at no cost
            ping_interval=None,  # the worker sends heartbeats
            max_size=FRAME_BYTES_MAX,
            open_timeout=CONNECT_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return socket, await _greet(socket, key)
        except BaseException:
            await socket.close()
            raise
    except Cut:
        raise
    except (OSError, WebSocketException) as end:
        raise reason_of(end) from end


async def _greet(socket: ClientConnection, key: str) -> Frame:
    hello = parse(await socket.recv())
    if hello.get("auth") == "required":  # something in between removed the header
        await socket.send(json.dumps({"type": "auth", "token": key}))
        hello = parse(await socket.recv())
    if hello.get("type") != "hello":
        raise Cut(f"Expected the worker's hello, got {hello.get('type')!r}")
    return hello


def reason_of(end: Exception) -> Exception:
    """Return what the end of a connection means: a Cut, or ConnectionFailed if reconnecting is useless."""
    match end:
        case Cut():
            return end
        case ConnectionClosed() if end.rcvd is not None and (end.rcvd.code == 1000 or 4400 <= end.rcvd.code < 4500):
            code = end.rcvd.code
            detail = end.rcvd.reason or f"The worker closed the connection with {code}"
            return ConnectionFailed(detail, CLOSE_CODES.get(code, f"closed_{code}"))
        case InvalidStatus(response=response):
            refusal = refusal_of(response.status_code, response.headers.get("Retry-After", ""), response.body)
            if isinstance(refusal, Cut):
                return refusal
            if refusal.retry_after_ms is not None:
                return Cut(str(refusal), refusal.retry_after_ms / 1000)
            return ConnectionFailed(refusal.detail, refusal.code, refusal.problem)
        case InvalidURI():
            return ConnectionFailed(str(end), "invalid_url")
        case OSError() | WebSocketException():
            return Cut(repr(end))
        case _:
            return end
