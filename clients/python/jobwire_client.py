"""Client for Jobwire: create a job, read its text as it is made, cancel it, and survive every cut in between.

::

    async with connect("http://127.0.0.1:8080") as jw:
        async for event in jw.run("Tell me a story about a fox", max_tokens=200):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

One WebSocket carries any number of jobs. After a cut the client connects again and sends the same request with the
cursor of the last event it received: no text is lost or doubled. `stream_sse` does the same for one job over HTTP.

Backpressure: no job ever blocks another one of its connection. What the reader of a job has not read yet waits here,
and tokens that wait are read as one. A job with more than `unread_bytes_max` waiting is unsubscribed: the worker keeps
its log, and reading on subscribes again at the cursor. Nothing is dropped and memory is bounded. But the worker gives
up a job that nobody follows for its `orphan_ttl_s`, unless the job was created with `detach=True`.

Errors::

    JobwireError             has `code`, `detail`, `status`, `retry_after_ms`, `problem`
     +-- Refused             the worker said no to a request
     +-- JobFailed           the job ended as failed or expired
     +-- JobCancelled        the whole text was asked for, but the job was cancelled
     +-- ConnectionFailed    gone for good: a wrong key, no answer for `retry_timeout_s`, or closed by the program
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Self, TypeAlias, TypedDict, Unpack
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

__all__ = [
    "Client", "ConnectionFailed", "End", "Event", "Job", "JobCancelled", "JobFailed", "JobwireError", "Narration",
    "Params", "Refused", "Reset", "SseJob", "Stream", "Token", "Usage", "connect", "stream_sse",
]  # fmt: skip

HEARTBEAT_S = 15.0  # the worker's own default, until its hello says otherwise
CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
STABLE_S = 5.0  # a connection that lasted this long ends an outage, even if nothing happened on it
FRAME_BYTES_MAX = 16 << 20  # inbound: far above the worker's own limit
EVENT_COST_BYTES = 256  # what an unread event costs beside its text, roughly
CLOSE_CODES = {4400: "protocol_abuse", 4401: "unauthorized", 4403: "forbidden", 4406: "version", 4408: "auth_timeout"}

Frame: TypeAlias = dict[str, Any]
logger = logging.getLogger(__name__)


class Usage(TypedDict, total=False):
    """What a job took. Times are in milliseconds."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_ms: float
    ttft_ms: float
    total_ms: float
    tokens_per_s: float


class Params(TypedDict, total=False):
    """What a job may ask for, as on the wire; the worker checks it and says what is wrong with it."""

    operation: str
    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | list[str]
    logit_bias: dict[str, float]
    response_format: dict[str, Any]
    logprobs: int
    raw: bool
    ignore_eos: bool
    n: int
    priority: int
    include: list[str]
    channels: list[str]
    coalesce_ms: int
    detach: bool
    deadline_ms: int


Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or messages like `{"role": "user", "content": "Hi"}`."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text: `n` tokens of the choice `index`. `kind` is text or reasoning."""

    job_id: str
    cursor: str
    text: str
    n: int = 1
    index: int = 0
    kind: str = "text"
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Narration:
    """What happens to the job, in one sentence for people (`human`). `fields` is all that the worker said."""

    job_id: str
    cursor: str
    actor: str = ""
    action: str = ""
    human: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """The last event of every job. `status` is completed, cancelled, failed or expired."""

    job_id: str
    cursor: str
    status: str
    finish_reason: str | None = None
    reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """The worker lost its log of the job and starts it over: forget all text so far. Rare."""

    job_id: str


Event: TypeAlias = Token | Narration | End | Reset


def event_of(frame: Frame) -> Token | Narration | End | None:
    """Return the event in a frame, or None for types that this client does not know. Unknown fields are ignored."""
    make = _EVENTS.get(frame.get("type", ""))
    if make is None:
        return None
    known: Frame = {name: frame[name] for name in make.__match_args__ if frame.get(name) is not None}
    for name in known.keys() & {"ids", "logprobs", "top_logprobs"}:
        known[name] = tuple(known[name])
    if make is Narration:
        known["fields"] = frame
    return make(**known)


_EVENTS: dict[str, type[Token] | type[Narration] | type[End]] = {"token": Token, "narration": Narration, "end": End}


class JobwireError(Exception):
    """Base of all errors here. `code` is stable; `retry_after_ms` is set exactly when a retry makes sense."""

    def __init__(self, detail: str, code: str, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{detail} ({code})")
        self.detail = detail
        self.code = code
        self.problem: Mapping[str, Any] = problem or {}
        self.status: int | None = self.problem.get("status")
        self.retry_after_ms: int | None = self.problem.get("retry_after_ms")

    @classmethod
    def of(cls, problem: Mapping[str, Any]) -> Self:
        """Build it from the worker's problem object (RFC 9457)."""
        return cls(problem.get("detail") or problem.get("title") or "No detail", problem.get("code", "error"), problem)


class Refused(JobwireError):
    """The worker said no to a request."""


class JobFailed(JobwireError):
    """The job ended as failed or expired."""


class JobCancelled(JobwireError):
    """The whole text was asked for, but the job was cancelled; `text` is what there is."""

    text = ""


class ConnectionFailed(JobwireError):
    """The connection is gone for good. Jobs go on at the worker, and their `cursor` resumes them."""


class _Retry:
    """Spaces the attempts of one outage, with jitter, and says when it has lasted too long."""

    def __init__(self, timeout_s: float, first_s: float, most_s: float) -> None:
        self._limits = timeout_s, first_s, most_s
        self.clear()

    def clear(self) -> None:
        """The outage is over."""
        self._tries = 0
        self._since = float("inf")

    def delay_s(self, cause: Exception, at_least_s: float = 0.0) -> float:
        """Return how long to wait now. Raises `cause`, as a ConnectionFailed if it is none of ours."""
        timeout_s, first_s, most_s = self._limits
        now = time.monotonic()
        self._since = min(self._since, now)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret: many clients must not come back at once
        delay_s = max(min(most_s, first_s * 2.0**self._tries) * jitter, at_least_s)
        if now + delay_s - self._since > timeout_s:
            if isinstance(cause, JobwireError):
                raise cause
            raise ConnectionFailed(f"No answer for {timeout_s:g} s: {cause!r}", "connection_failed") from cause
        self._tries = min(self._tries + 1, 32)
        return delay_s


@dataclass(frozen=True)
class _Options:
    token: str | None
    retry_timeout_s: float
    backoff_s: tuple[float, float]
    unread_bytes_max: int

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def retry(self) -> _Retry:
        return _Retry(self.retry_timeout_s, *self.backoff_s)


class Stream(ABC):
    """The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.

    `cursor` is where the reader is: give it to `subscribe(id, after=cursor)`, anywhere, to go on from there.
    Leaving a loop early leaves the job as it is: iterate again, `cancel()` it, or `aclose()` to stop watching it.
    """

    def __init__(self, job_id: str, after: str | None) -> None:
        self.id = job_id
        self.cursor = after
        self.end: End | None = None
        self._done = False
        self._texts: dict[int, list[str]] = {}

    async def __aenter__(self) -> Self:
        """Use `async with` to have it closed whenever the block is left."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. Raises Refused, JobFailed instead of a failed or expired End, ConnectionFailed."""
        event = None if self._done else await self._wait_next()
        if event is None:
            self._done = True
            raise StopAsyncIteration
        self._fold(event)
        self._check_end()
        return event

    async def text(self, index: int = 0) -> str:
        """Wait for the end and return the whole text of a choice: what was read before and the rest.

        Raises JobCancelled when there is no whole text, and what iterating raises.
        """
        async for _ in self:
            pass
        self._check_end()
        text = "".join(self._texts.get(index, ()))
        if self.end is not None and self.end.status == "cancelled":
            cancelled = JobCancelled(f"The job was cancelled: {self.end.reason or 'by request'}", "cancelled")
            cancelled.text = text
            raise cancelled
        return text

    def _fold(self, event: Event) -> None:
        if isinstance(event, Reset):
            self.cursor = None
            self._texts.clear()
            return
        self.cursor = event.cursor
        if isinstance(event, Token) and event.kind == "text":
            self._texts.setdefault(event.index, []).append(event.text)
        elif isinstance(event, End):
            self.end = event
            self._done = True

    def _check_end(self) -> None:
        if self.end is not None and self.end.status in ("failed", "expired"):
            problem = self.end.error or {"code": self.end.status, "detail": self.end.reason}
            raise JobFailed.of(problem)

    @abstractmethod
    async def cancel(self) -> None:
        """Cancel the job and wait until the worker has heard it; its End follows. A job that has ended is success."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stop watching the job, which goes on."""

    @abstractmethod
    async def _wait_next(self) -> Event | None:
        """Wait for the next event, or None when there is none any more."""


class _Link(Enum):
    """How a job stands with the connection of this moment. Events count only when ATTACHED."""

    AWAY = auto()
    ASKED = auto()
    ATTACHED = auto()


class _Subscription:
    """One job on a connection, without I/O: what to send for it, what its frames mean, what waits for its reader.

    Nothing is sent from here. `notify` says that `frames` may have something new; after a cut, `detach` makes it begin
    again, so that the worker is always brought from where it is to what the job wants now.
    """

    def __init__(self, request: Frame, after: str | None, options: _Options, notify: Callable[[], None]) -> None:
        self.job_id: str = request["job_id"]
        self.accepted: Frame | None = None
        self.failure: JobwireError | None = None
        self.ended = False  # the end is received, though perhaps not read
        self.cancelled = False  # the worker has heard of the cancel
        self.closed = False
        self.changed = asyncio.Event()
        self._request = request
        self._received = after
        self._notify = notify
        self._retry = options.retry()
        self._unread: deque[Event] = deque()
        self._unread_bytes = 0
        self._unread_bytes_max = options.unread_bytes_max
        self._link = _Link.AWAY
        self._watching = True
        self._cancel_wanted = self._cancel_sent = False

    @property
    def over(self) -> bool:
        """Nothing more will be sent or received."""
        if self.ended or self.failure is not None:
            return True
        return self.closed and self._link is _Link.AWAY and self._exists and (self.cancelled or not self._cancel_wanted)

    @property
    def _exists(self) -> bool:
        """The worker knows the job: to stop watching it need not wait until it is created."""
        return self.accepted is not None or self._received is not None or self._request["type"] == "subscribe"

    @property
    def has_news(self) -> bool:
        """The reader need not wait."""
        return bool(self._unread) or self.ended or self.closed

    def cancel(self) -> None:
        self._cancel_wanted = True
        self._notify()

    def close(self) -> None:
        self.closed, self._watching = True, False
        self._drop_unread()
        self._notify()

    def fail(self, error: JobwireError) -> None:
        self.failure = self.failure or error
        self.changed.set()

    def detach(self) -> None:
        """The connection is gone."""
        self._link, self._cancel_sent = _Link.AWAY, False

    def take(self) -> Event | None:
        """Take the oldest unread event; tokens that wait behind a token come with it."""
        if not self._unread:
            return None
        run = [self._unread.popleft()]
        while self._unread and _mergeable(run[0], self._unread[0]):
            run.append(self._unread.popleft())
        self._unread_bytes -= sum(map(_cost, run))
        if not (self._watching or self.closed) and self._unread_bytes <= self._unread_bytes_max // 2:
            self._watching = True
            self._notify()
        return run[0] if len(run) == 1 else _merge(run)

    def frames(self, ref: Callable[[Callable[[Frame], None]], str]) -> Iterator[Frame]:
        """What to send now; it counts as sent. `ref` makes a reference for the answer and keeps who wants it."""
        if self._link is _Link.AWAY and not self.over and (self._watching or not self._exists):
            self._link = _Link.ASKED
            resume = {} if self._received is None else {"after": self._received}
            yield {**self._request, **resume, "ref": ref(self._answered)}
        if self._cancel_wanted and not (self._cancel_sent or self.over):
            self._cancel_sent = True
            yield {"type": "cancel", "job_id": self.job_id, "ref": ref(self._cancel_answered)}
        if self._link is _Link.ATTACHED and not self._watching:
            self._link = _Link.AWAY
            yield {"type": "unsubscribe", "job_id": self.job_id}

    def receive(self, event: Token | Narration | End) -> None:
        """Take in an event, unless it was on its way since before an unsubscribe: then it comes again."""
        if self._link is not _Link.ATTACHED:
            return
        self._received = event.cursor
        self.ended = isinstance(event, End)
        self._push(event)
        if self._watching and self._unread_bytes > self._unread_bytes_max and not self.ended:
            self._watching = False
            self._notify()

    def _answered(self, answer: Frame) -> None:
        if answer["type"] == "error":
            return self._refused(Refused.of(answer["error"]))
        self._link = _Link.ATTACHED
        self._retry.clear()
        self.accepted = answer
        if answer.get("reset"):
            self._drop_unread()
            self._received = None
            self._push(Reset(self.job_id))
        self.ended = bool(answer.get("over"))  # the cursor is at the end already: nothing follows
        self.changed.set()
        return self._notify()

    def _refused(self, refusal: Refused) -> None:
        """A job that was accepted before and is refused for now, waits; any other refusal is final."""
        self._link = _Link.AWAY
        if self.accepted is None or refusal.retry_after_ms is None:
            return self.fail(refusal)
        try:
            delay_s = self._retry.delay_s(refusal, refusal.retry_after_ms / 1000)
        except JobwireError as error:
            return self.fail(error)
        asyncio.get_running_loop().call_later(delay_s, self._notify)
        return None

    def _cancel_answered(self, answer: Frame) -> None:
        if answer["type"] == "error":
            return self.fail(Refused.of(answer["error"]))
        self.cancelled = True
        return self.changed.set()

    def _push(self, event: Event) -> None:
        if not self.closed:
            self._unread.append(event)
            self._unread_bytes += _cost(event)
        self.changed.set()

    def _drop_unread(self) -> None:
        self._unread.clear()
        self._unread_bytes = 0


class Job(Stream):
    """A job over a WebSocket."""

    def __init__(self, subscription: _Subscription, after: str | None) -> None:
        super().__init__(subscription.job_id, after)
        self._subscription = subscription

    @property
    def accepted(self) -> Mapping[str, Any]:
        """The worker's latest answer: state, queue, sse_url. Empty before it."""
        return self._subscription.accepted or {}

    async def wait_accepted(self) -> Self:
        """Wait until the worker has accepted the job. Raises Refused with the worker's code."""
        await self._wait_until(lambda: self._subscription.accepted is not None)
        return self

    async def cancel(self) -> None:
        """Cancel the job and wait until the worker has heard it; its End follows. A job that has ended is success."""
        self._subscription.cancel()
        await self._wait_until(lambda: self._subscription.cancelled or self._subscription.ended)

    async def aclose(self) -> None:
        """Stop watching the job, which goes on."""
        self._done = True
        self._subscription.close()

    async def _wait_next(self) -> Event | None:
        await self._wait_until(lambda: self._subscription.has_news)
        return self._subscription.take()

    async def _wait_until(self, true: Callable[[], bool]) -> None:
        changed = self._subscription.changed
        while not true():
            if self._subscription.failure is not None:
                raise self._subscription.failure
            changed.clear()
            await changed.wait()


def _cost(event: Event) -> int:
    if isinstance(event, Token):
        return EVENT_COST_BYTES + len(event.text)
    return EVENT_COST_BYTES + (len(event.human) if isinstance(event, Narration) else 0)


def _mergeable(a: Event, b: Event) -> bool:
    return isinstance(a, Token) and isinstance(b, Token) and (a.index, a.kind) == (b.index, b.kind)


def _merge(run: Sequence[Event]) -> Token:
    tokens = [event for event in run if isinstance(event, Token)]
    return replace(
        tokens[-1],
        text="".join(token.text for token in tokens),
        n=sum(token.n for token in tokens),
        ids=tuple(i for token in tokens for i in token.ids),
        logprobs=tuple(x for token in tokens for x in token.logprobs),
        top_logprobs=tuple(x for token in tokens for x in token.top_logprobs),
    )


class Client:
    """One connection to a worker, kept up while a job of it is not over. Made by `connect`, used with `async with`."""

    def __init__(self, url: str, options: _Options) -> None:
        self.hello: Frame = {}
        self._options = options
        self._url = _base_url(url).replace("http", "ws", 1) + "/v1/ws"
        self._subscriptions: dict[str, _Subscription] = {}
        self._to_send: dict[_Subscription, None] = {}  # a set in order
        self._answers: dict[str, Callable[[Frame], None]] = {}  # by ref, of this connection
        self._refs = 0
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()  # the first connection stands, or it failed
        self._failure: JobwireError | None = None
        self._retry = options.retry()
        self._goaway_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises ConnectionFailed at once if that does not work; only later cuts are retried."""
        self._task = asyncio.create_task(self._run())
        try:
            await self._settled.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Jobs go on at the worker; who waits for one here gets ConnectionFailed."""
        self._fail(ConnectionFailed("The client is closed", "closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def run(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> Job:
        """Start a job and return at once; a refusal meets its reader. Raises ConnectionFailed if the client is closed.

        `job_id` (16 to 64 of A-Z a-z 0-9 _ -) makes it idempotent: the same request again is the same job.
        `after` resumes it at a cursor, and never runs it again.
        """
        return self._start({"type": "create", **_body(prompt, job_id, params)}, after)

    async def create(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> Job:
        """Start a job like `run` and wait until the worker has accepted it. Raises Refused with the worker's code."""
        return await self.run(prompt, job_id=job_id, after=after, **params).wait_accepted()

    def subscribe(self, job_id: str, *, after: str | None = None, channels: Sequence[str] | None = None) -> Job:
        """Watch a job that was created elsewhere, from its beginning or after a cursor."""
        chosen = {} if channels is None else {"channels": list(channels)}
        return self._start({"type": "subscribe", "job_id": job_id, **chosen}, after)

    def _start(self, request: Frame, after: str | None) -> Job:
        job_id = request["job_id"]
        if self._failure is not None:
            raise self._failure
        if job_id in self._subscriptions:
            raise ValueError(f"This connection watches job {job_id} already")
        subscription = _Subscription(request, after, self._options, lambda: self._notify(subscription))
        self._notify(subscription)
        return Job(subscription, after)

    def _notify(self, subscription: _Subscription) -> None:
        """See to it that the frames of a subscription are sent: of a new one, or of one closed before (to cancel)."""
        if self._failure is not None:
            subscription.fail(self._failure)
        elif not subscription.over:
            self._subscriptions.setdefault(subscription.job_id, subscription)
            self._to_send[subscription] = None
            self._wake.set()

    def _forget_if_over(self, subscription: _Subscription) -> None:
        if subscription.over and self._subscriptions.get(subscription.job_id) is subscription:
            del self._subscriptions[subscription.job_id]

    def _fail(self, error: JobwireError) -> None:
        self._failure = self._failure or error
        for subscription in self._subscriptions.values():
            subscription.fail(self._failure)
        self._subscriptions.clear()
        self._settled.set()

    async def _run(self) -> None:
        """Hold a connection while the client is open; after a cut, only while a job needs it."""
        try:
            while True:
                try:
                    await self._hold_connection()
                except (OSError, InvalidHandshake, InvalidURI, ConnectionClosed) as cut:
                    await self._wait_before_next(cut)
        except JobwireError as error:
            self._fail(error)
        except Exception as bug:
            logger.exception("the client failed")
            self._fail(ConnectionFailed(f"The client failed: {bug!r}", "client_failed"))

    async def _wait_before_next(self, cut: Exception) -> None:
        """Wait between two connections. Raises ConnectionFailed when there must not be another one."""
        wait_s = _wait_s(cut)
        if not self._settled.is_set():
            raise ConnectionFailed(f"Cannot connect: {cut!r}", "connection_failed") from cut
        while not self._subscriptions:
            self._wake.clear()
            await self._wake.wait()
        delay_s = self._retry.delay_s(cut, max(wait_s, self._goaway_s))
        logger.info("reconnecting in %.2f s: %s", delay_s, cut)
        await asyncio.sleep(delay_s)

    async def _hold_connection(self) -> None:
        """Connect and serve until the connection ends, which is always an exception."""
        async with open_websocket(
            self._url,
            subprotocols=[Subprotocol("jobwire.v1")],
            additional_headers=self._options.headers(),
            compression=None,  # merged frames save more, and cost nothing
            ping_interval=None,  # the worker's heartbeat does it
            max_size=FRAME_BYTES_MAX,
            open_timeout=CONNECT_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
        ) as socket:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                self.hello = _parse(await socket.recv())
            self._settled.set()
            since = time.monotonic()
            for subscription in self._subscriptions.values():
                self._notify(subscription)
            writer = asyncio.create_task(self._write(socket))
            try:
                await self._read(socket)
            finally:
                if time.monotonic() - since > STABLE_S:
                    self._retry.clear()
                writer.cancel()
                await asyncio.wait([writer])
                self._detach()

    def _detach(self) -> None:
        self._answers.clear()
        for subscription in list(self._subscriptions.values()):
            subscription.detach()
            self._forget_if_over(subscription)

    async def _read(self, socket: ClientConnection) -> None:
        silence_s = 2 * self._limit("heartbeat_s", HEARTBEAT_S)
        while True:
            async with asyncio.timeout(silence_s):
                message = await socket.recv()
            self._receive(_parse(message))

    def _receive(self, frame: Frame) -> None:
        kind, subscription = frame.get("type"), self._subscriptions.get(frame.get("job_id", ""))
        if kind in ("accepted", "error"):
            answered = self._answers.pop(frame.get("ref", ""), None)
            if answered is not None:
                answered(frame)
            elif kind == "error":
                logger.warning("the worker reports: %s", frame.get("error"))
        elif kind == "goaway":
            self._goaway_s = frame.get("retry_ms", 0) / 1000
        elif subscription is not None and (event := event_of(frame)) is not None:
            self._retry.clear()
            self._goaway_s = 0.0
            subscription.receive(event)
        if subscription is not None:
            self._forget_if_over(subscription)

    async def _write(self, socket: ClientConnection) -> None:
        if self.hello.get("auth") == "required":
            await socket.send(json.dumps({"type": "auth", "token": self._options.token or ""}))
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._to_send:
                subscription = next(iter(self._to_send))
                del self._to_send[subscription]
                for frame in subscription.frames(self._ref):
                    await self._send(socket, subscription, json.dumps(frame))
                self._forget_if_over(subscription)

    async def _send(self, socket: ClientConnection, subscription: _Subscription, message: str) -> None:
        bytes_max = self._limit("max_frame_bytes", FRAME_BYTES_MAX)
        if len(message) <= bytes_max:  # it is ASCII
            return await socket.send(message)
        # The worker would close the connection of all jobs.
        refusal = Refused(f"Expected a request of at most {bytes_max:.0f} bytes, got {len(message)}", "frame_too_large")
        return subscription.fail(refusal)

    def _ref(self, answered: Callable[[Frame], None]) -> str:
        self._refs += 1
        self._answers[str(self._refs)] = answered
        return str(self._refs)

    def _limit(self, name: str, default: float) -> float:
        return float(self.hello.get("limits", {}).get(name, default))


class SseJob(Stream):
    """A job over HTTP: POST, then an event stream that resumes with Last-Event-ID. It reads only as you read."""

    def __init__(self, url: str, job_id: str, body: Frame | None, after: str | None, options: _Options) -> None:
        super().__init__(job_id, after)
        self._base = _base_url(url)
        self._body = body
        self._options = options
        self._events: AsyncGenerator[Event] | None = None

    async def cancel(self) -> None:
        """Cancel the job and wait until the worker has heard it; its End follows. A job that has ended is success."""
        if self.end is None:
            async with self._http() as http:
                await self._request(http, "DELETE", self._job_path())

    async def aclose(self) -> None:
        """Stop watching the job, which goes on."""
        self._done = True
        if self._events is not None:
            await self._events.aclose()

    async def _wait_next(self) -> Event | None:
        self._events = self._events or self._read()
        try:
            event = await anext(self._events, None)
        except BaseException:
            self._events = None  # it is spent; whoever reads on goes on at the cursor
            raise
        if isinstance(event, End):
            await self._events.aclose()
        return event

    async def _read(self) -> AsyncGenerator[Event]:
        async with self._http() as http:
            path = self._job_path() + "/stream"
            if self._body is not None and self.cursor is None:
                path = (await self._request(http, "POST", "/v1/jobs", self._body)).json()["sse_url"]
            retry = self._options.retry()
            while True:
                try:
                    async with http.stream("GET", self._base + path, headers=self._stream_headers()) as response:
                        if response.status_code == 204:
                            return
                        await _check(response)
                        async for event in _sse_events(response, self.id):
                            retry.clear()
                            yield event
                            if isinstance(event, End):
                                return
                    raise ConnectionFailed("The stream stopped before the end of the job", "connection_failed")
                except (httpx.TransportError, ConnectionFailed, Refused) as cut:
                    wait_ms = cut.retry_after_ms if isinstance(cut, Refused) else 0
                    if wait_ms is None:
                        raise
                    await asyncio.sleep(retry.delay_s(cut, wait_ms / 1000))

    async def _request(
        self, http: httpx.AsyncClient, method: str, path: str, body: Frame | None = None
    ) -> httpx.Response:
        """One idempotent request, repeated while there is no answer. Raises Refused, ConnectionFailed."""
        retry = self._options.retry()
        headers = {"Accept": "application/json", **self._options.headers()}
        while True:
            try:
                response = await http.request(method, self._base + path, json=body, headers=headers)
            except httpx.TransportError as cut:
                await asyncio.sleep(retry.delay_s(cut))
            else:
                await _check(response)
                return response

    def _http(self) -> httpx.AsyncClient:
        # Two heartbeats of silence are a cut.
        return httpx.AsyncClient(timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=2 * HEARTBEAT_S))

    def _job_path(self) -> str:
        return "/v1/jobs/" + quote(self.id, safe="")

    def _stream_headers(self) -> dict[str, str]:
        resume = {} if self.cursor is None else {"Last-Event-ID": self.cursor}
        return {"Accept": "text/event-stream", **resume, **self._options.headers()}


def connect(
    url: str,
    token: str | None = None,
    *,
    retry_timeout_s: float = 60.0,
    backoff_s: tuple[float, float] = (0.25, 10.0),
    unread_bytes_max: int = 4 << 20,
) -> Client:
    """Return a client for the worker at `url` (http, https, ws or wss), to be used with `async with`.

    `retry_timeout_s`: how long one outage may last. `backoff_s`: the first and the longest pause between attempts.
    `unread_bytes_max`: how much of a job may wait for its reader here, roughly.
    """
    return Client(url, _Options(token, retry_timeout_s, backoff_s, unread_bytes_max))


def stream_sse(
    url: str,
    prompt: Prompt | None = None,
    *,
    token: str | None = None,
    job_id: str | None = None,
    after: str | None = None,
    retry_timeout_s: float = 60.0,
    backoff_s: tuple[float, float] = (0.25, 10.0),
    **params: Unpack[Params],
) -> SseJob:
    """Return a job over HTTP and SSE: a new one from `prompt`, or without a prompt the one called `job_id`.

    It starts when it is first read. `after` resumes at a cursor, also one that came over a WebSocket.
    """
    options = _Options(token, retry_timeout_s, backoff_s, 0)
    if prompt is None:
        if job_id is None:
            raise ValueError("Give a prompt, or the job_id of a job that exists")
        return SseJob(url, job_id, None, after, options)
    body = _body(prompt, job_id, params)
    return SseJob(url, body["job_id"], body, after, options)


def _body(prompt: Prompt, job_id: str | None, params: Params) -> Frame:
    source = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
    return {"job_id": job_id or str(uuid.uuid4()), **source, **params}


def _base_url(url: str) -> str:
    """The http(s) URL that the paths of the protocol follow, whatever form of the worker's address is given."""
    parts = urlsplit(url)
    scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ValueError(f"Expected a URL like http://127.0.0.1:8080, got {url!r}")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1/ws"), "", ""))


def _parse(message: str | bytes) -> Frame:
    """Parse a message. What is no JSON object counts as a cut connection."""
    try:
        frame = json.loads(message)
    except ValueError as error:
        raise ConnectionError("The worker sent something that is not JSON") from error
    if not isinstance(frame, dict):
        raise ConnectionError("The worker sent JSON that is not an object")
    return frame


def _wait_s(cut: Exception) -> float:
    """Return the least to wait after the end of a connection. Raises ConnectionFailed when it is final."""
    if isinstance(cut, ConnectionClosed) and cut.rcvd is not None:
        code = cut.rcvd.code
        if code == 1000 or 4400 <= code < 4500:
            detail = cut.rcvd.reason or f"The worker closed the connection with {code}"
            raise ConnectionFailed(detail, CLOSE_CODES.get(code, f"closed_{code}")) from cut
    if isinstance(cut, InvalidStatus):
        refusal = _refusal(cut.response.status_code, cut.response.headers.get("Retry-After", ""), cut.response.body)
        if refusal.retry_after_ms is None:
            raise ConnectionFailed(refusal.detail, refusal.code, refusal.problem) from cut
        return refusal.retry_after_ms / 1000
    if isinstance(cut, InvalidURI):
        raise ConnectionFailed(str(cut), "invalid_url") from cut
    return 0.0


async def _check(response: httpx.Response) -> None:
    """Raise Refused unless the answer is good."""
    if response.status_code != 200:
        raise _refusal(response.status_code, response.headers.get("Retry-After", ""), await response.aread())


def _refusal(status: int, retry_after: str, body: bytes | bytearray | None) -> Refused:
    """The error in an HTTP answer, the worker's own or that of a proxy before it (which may stand for a restart)."""
    try:
        problem = json.loads(body or b"")
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        problem = {"code": f"http_{status}", "detail": f"HTTP status {status}", "status": status}
        if status in (429, 502, 503, 504):
            problem["retry_after_ms"] = 1000 * int(retry_after) if retry_after.isdecimal() else 1000
    return Refused.of(problem)


async def _sse_events(response: httpx.Response, job_id: str) -> AsyncIterator[Event]:
    """The events in a stream. Lines end in LF or CRLF only: the line splitting of str would cut at U+2028 too."""
    rest, data = b"", b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                data += line[5:]
            elif not line and data:
                frame, data = _parse(data), b""
                event = Reset(job_id) if frame.get("reset") else event_of(frame)
                if event is not None:
                    yield event
