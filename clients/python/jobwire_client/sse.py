"""Each job as a POST and an event stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit

import httpx

from .errors import ConnectionFailed, Cut, JobwireError, Refused
from .events import Frame, event_of
from .options import Settings
from .retry import STABLE_S, Retry
from .subscription import Ask, Step, Subscription, Subscriptions
from .wire import CONNECT_TIMEOUT_S, HEARTBEAT_S, parse, refusal_of

logger = logging.getLogger(__name__)


class SseTransport:
    """Each job as a POST and an event stream, which resumes with Last-Event-ID."""

    name = "sse"

    def __init__(self, settings: Settings, subscriptions: Subscriptions) -> None:
        self.hello: Frame = {}
        self._settings = settings
        self._subscriptions = subscriptions
        self._http: httpx.AsyncClient | None = None
        self._streams: dict[Subscription, asyncio.Task[None]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Do nothing: the first request connects."""

    def notify(self, subscription: Subscription) -> None:
        stream = self._streams.get(subscription)
        if subscription.closed and subscription.exists:
            if stream is not None:
                stream.cancel()
        elif stream is None:
            self._streams[subscription] = stream = asyncio.create_task(self._run(subscription))
            stream.add_done_callback(lambda _: self._forget(subscription))
        if subscription.exists:
            for ask in subscription.unsent_asks():
                task = asyncio.create_task(self._ask(subscription, ask))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def aclose(self) -> None:
        tasks = [*self._streams.values(), *self._asking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _run(self, subscription: Subscription) -> None:
        try:
            await self._follow(subscription)
        except JobwireError as error:
            subscription.fail(error)
        except Exception as bug:
            logger.exception("the client failed")
            subscription.fail(ConnectionFailed(f"The client failed: {bug!r}", "client_failed"))

    def _forget(self, subscription: Subscription) -> None:
        subscription.step(Step.DETACH)
        del self._streams[subscription]
        self._subscriptions.forget_if_over(subscription)

    async def _follow(self, subscription: Subscription) -> None:
        if not subscription.exists:
            body = {name: value for name, value in subscription.request.items() if name != "type"}
            answer = await self._request("POST", "/v1/jobs", body)
            subscription.answered({"type": "accepted", **answer})
        retry = self._settings.retry()
        while not (subscription.over or subscription.closed):
            try:
                await self._read(subscription, retry)
            except Cut as cut:
                await asyncio.sleep(retry.delay_s(cut, cut.retry_s))
            except Refused as refusal:
                if refusal.retry_after_ms is None:
                    raise
                await asyncio.sleep(retry.delay_s(refusal, refusal.retry_after_ms / 1000))

    async def _read(self, subscription: Subscription, retry: Retry) -> None:
        """Read one stream until the job is over or closed, no faster than the job's reader. Raises Cut."""
        resume = {} if subscription.received is None else {"Last-Event-ID": subscription.received}
        path = f"{_job_path(subscription)}/stream"
        async with self._answer("GET", path, {"Accept": "text/event-stream", **resume}) as response:
            if response.status_code == 204:
                return subscription.nothing_follows()
            opened_at = time.monotonic()
            if subscription.accepted is None:
                sse_url = urlsplit(self._settings.base + path).path
                known = {"job_id": subscription.job_id, "state": "running", "sse_url": sse_url}
                subscription.answered({"type": "accepted", **known})
            subscription.step(Step.ATTACH)
            try:
                async for frame in _frames_of(response):
                    retry.clear()
                    _receive(subscription, frame)
                    while not (subscription.watching or subscription.closed or subscription.over):
                        subscription.changed.clear()
                        await subscription.changed.wait()
                    if subscription.over or subscription.closed:
                        return None
            finally:
                if time.monotonic() - opened_at > STABLE_S:
                    retry.clear()
        raise Cut("The stream stopped before the end of the job")

    async def _ask(self, subscription: Subscription, ask: Ask) -> None:
        answer: Frame
        try:
            if ask.frame["type"] != "cancel":
                raise Refused("A priority can be changed over a WebSocket only", "unsupported_operation")
            answer = await self._request("DELETE", _job_path(subscription))
        except JobwireError as error:
            answer = {"type": "error", "error": {"code": error.code, "detail": error.detail, **error.problem}}
        subscription.settle(ask, answer)
        self._subscriptions.forget_if_over(subscription)

    async def _request(self, method: str, path: str, body: Frame | None = None) -> Frame:
        """Send an idempotent request until there is an answer. Raises Refused, ConnectionFailed."""
        retry = self._settings.retry()
        while True:
            try:
                async with self._answer(method, path, {"Accept": "application/json"}, body) as response:
                    return parse(await response.aread())
            except Cut as cut:
                await asyncio.sleep(retry.delay_s(cut, cut.retry_s))

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: Frame | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, with another key if the first one is refused. Raises Refused, Cut."""
        if self._http is None:
            # Two heartbeats of silence are a cut.
            timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=2 * HEARTBEAT_S)
            self._http = httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None))
        url = self._settings.base + path
        try:
            for has_another_key in (self._settings.renews, False):
                every = {**headers, **await self._settings.headers()}
                async with self._http.stream(method, url, json=body, headers=every) as response:
                    if response.status_code == 401 and has_another_key:
                        continue
                    if response.status_code not in (200, 204):
                        retry_after = response.headers.get("Retry-After", "")
                        raise refusal_of(response.status_code, retry_after, await response.aread())
                    yield response
                    return
        except httpx.TransportError as error:
            raise Cut(repr(error)) from error


def _receive(subscription: Subscription, frame: Frame) -> None:
    if frame.get("reset"):
        subscription.reset()
    elif (event := event_of(frame)) is not None and _is_wanted(subscription, frame["type"]):
        subscription.receive(event)


def _is_wanted(subscription: Subscription, kind: str) -> bool:
    """Return whether the job's channels include a type. A WebSocket carries those alone; a stream has all."""
    return kind == "end" or kind in subscription.request.get("channels", (kind,))


def _job_path(subscription: Subscription) -> str:
    return "/v1/jobs/" + quote(subscription.job_id, safe="")


async def _frames_of(response: httpx.Response) -> AsyncIterator[Frame]:
    """Yield the frames in a stream. Lines end in LF or CRLF only; str.splitlines would split at U+2028 too."""
    rest, data = b"", b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                data += line[5:]
            elif not line and data:
                frame, data = parse(data), b""
                yield frame


async def answers_http(base: str) -> bool:
    """Return whether the worker answers HTTP, though no WebSocket gets through to it."""
    try:
        async with httpx.AsyncClient(timeout=CONNECT_TIMEOUT_S) as http:
            return (await http.get(f"{base}/")).is_success
    except httpx.TransportError:
        return False
