"""The jobs of one program, with asyncio."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

from websockets.exceptions import ConnectionClosed

from .errors import ConnectionFailed, Cut, JobwireError, NoKey
from .events import Frame
from .job import Job
from .options import KeySource, Options, Params, Prompt, Settings, base_url
from .sse import SseTransport, answers_http
from .subscription import Subscription, Subscriptions
from .websocket import WebSocketTransport


class Client:
    """The jobs of one program at one worker, over one connection. Returned by `connect`, used with `async with`.

    Any number of tasks of one event loop may use a client at once. It is not thread-safe: see `connect_sync`.
    """

    def __init__(self, url: str, token: KeySource, options: Options) -> None:
        self._settings = Settings(base_url(url), token, **options)
        self._subscriptions = Subscriptions()
        self._failure: JobwireError | None = ConnectionFailed("The client is not open: use `async with`", "closed")
        over_sse = self._settings.transport == "sse"
        self._transport: WebSocketTransport | SseTransport = self._sse() if over_sse else self._websocket()

    @property
    def transport(self) -> str:
        """The current transport: "websocket" or "sse"."""
        return self._transport.name

    @property
    def hello(self) -> Mapping[str, Any]:
        """The worker's hello: its version and its limits. Empty over SSE."""
        return self._transport.hello

    async def __aenter__(self) -> Self:
        """Connect and return the client.

        Raises ConnectionFailed at once if there is no connection; only later cuts are retried. Cancelling the wait is
        safe: it leaves no connection, and the client may be opened again.
        """
        try:
            await self._transport.open()
        except (Cut, ConnectionFailed) as failure:
            # A close code proves that WebSockets get through; without a key no connection was tried.
            was_tried = not isinstance(failure, NoKey) and not isinstance(failure.__cause__, ConnectionClosed)
            if self._settings.transport == "auto" and was_tried and await answers_http(self._settings.base):
                self._transport = self._sse()
            elif isinstance(failure, Cut):
                raise ConnectionFailed(f"Cannot connect: {failure}", "connection_failed") from failure
            else:
                raise
        self._failure = None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all waits for jobs with ConnectionFailed, then close the connection. Jobs continue at the worker.

        Raises nothing, and calling it again does nothing. If the wait is cancelled, call it again to close what is
        left.
        """
        self._fail(ConnectionFailed("The client is closed", "closed"))
        await self._transport.aclose()

    def run(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> Job:
        """Start a job and return it at once, before the worker has answered. A refusal is raised to the job's reader.

        `job_id` (16 to 64 characters of A-Z a-z 0-9 _ -) makes the request idempotent: sent again, it is the same job.
        `after` resumes the job at a cursor and never runs it again.

        Never waits. Raises ConnectionFailed if the client is closed, and ValueError if it watches this job already.
        """
        source = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        return self._follow({"type": "create", "job_id": job_id or str(uuid.uuid4()), **source, **params}, after)

    async def create(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> Job:
        """Start a job like `run`, wait until the worker has accepted it, and return it.

        Raises Refused with the worker's code, and the errors of `run`. Cancelling the wait does not take the request
        back: the job may run. With a `job_id` of your own, a client that you open later finds it with `subscribe`.
        """
        return await self.run(prompt, job_id=job_id, after=after, **params).wait_accepted()

    def subscribe(
        self,
        job_id: str,
        *,
        after: str | None = None,
        channels: Sequence[str] | None = None,
        window: int | None = None,
    ) -> Job:
        """Watch a job that was created elsewhere, from its start or after a cursor, and return it at once.

        Never waits. Raises ConnectionFailed if the client is closed, and ValueError if it watches this job already. A
        job that the worker does not know is Refused, which is raised to the reader.
        """
        chosen: Frame = {} if channels is None else {"channels": list(channels)}
        if window is not None:
            chosen["window"] = window
        return self._follow({"type": "subscribe", "job_id": job_id, **chosen}, after)

    def _follow(self, request: Frame, after: str | None) -> Job:
        job_id = request["job_id"]
        if self._failure is not None:
            raise self._failure
        if job_id in self._subscriptions:
            raise ValueError(f"This client watches job {job_id} already")
        subscription = Subscription(request, after, self._settings, lambda: self._notify(subscription))
        self._notify(subscription)
        return Job(subscription)

    def _notify(self, subscription: Subscription) -> None:
        """Pass on a subscription with something to send: a new one, or a closed one that is to be cancelled."""
        if self._failure is not None:
            subscription.fail(self._failure)
        elif not subscription.over:
            self._subscriptions.setdefault(subscription.job_id, subscription)
            self._transport.notify(subscription)

    def _fail(self, error: JobwireError) -> None:
        self._failure = self._failure or error
        for subscription in self._subscriptions.values():
            subscription.fail(self._failure)
        self._subscriptions.clear()

    def _websocket(self) -> WebSocketTransport:
        return WebSocketTransport(self._settings, self._subscriptions, self._fail)

    def _sse(self) -> SseTransport:
        return SseTransport(self._settings, self._subscriptions)


def connect(url: str, token: KeySource = None, **options: Unpack[Options]) -> Client:
    """Return a client for the worker at `url` (http, https, ws or wss), to be used with `async with`.

    `token` is a key, or a function that returns one; it is called again before a key expires and when one is refused.
    Connects only when the client is opened. Raises ValueError for a wrong URL or transport.
    """
    return Client(url, token, options)
