"""Client for Jobwire: create a job, read its text as it is made, cancel it, and survive every cut in between.

::

    async with connect("http://127.0.0.1:8080") as jw:
        async for event in jw.run("Tell me a story about a fox", max_tokens=200):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

    with connect_sync("http://127.0.0.1:8080") as jw:  # the same without asyncio, for any number of threads
        print(jw.run("Tell me a story about a fox").text())

One WebSocket carries any number of jobs. Where a proxy lets none through, each job is an event stream over HTTP. After
a cut the client comes back with the same request and the cursor of the last event it received: no text is lost or
doubled.

Backpressure: no job ever blocks another one of its connection. What the reader of a job has not read yet waits here,
and tokens that wait are read as one. A job with more than `unread_bytes_max` waiting is put down (unsubscribed, or its
stream is not read on) until its reader comes: the worker keeps its log. Nothing is dropped and memory is bounded. With
`window` the worker itself waits: at most so many frames of a job are on their way or unread. But it gives up a job that
nobody follows for its `orphan_ttl_s`, unless the job was created with `detach=True`.

Errors::

    JobwireError             has `code`, `detail`, `status`, `retry_after_ms`, `problem`
     +-- Refused             the worker said no to a request
     +-- JobFailed           the job ended as failed or expired
     +-- JobCancelled        the whole text was asked for, but the job was cancelled
     +-- ConnectionFailed    gone for good: a wrong key, no answer for `retry_timeout_s`, or closed by the program
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from typing import Any, Literal, ParamSpec, Protocol, Self, TypeAlias, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

__all__ = [
    "Client", "ConnectionFailed", "End", "Event", "Job", "JobCancelled", "JobFailed", "JobwireError", "LikelyToken",
    "Narration", "Options", "Params", "Refused", "Reset", "SyncClient", "SyncJob", "Token", "Usage", "connect",
    "connect_sync",
]  # fmt: skip

HEARTBEAT_S = 15.0  # the worker's own default, until its hello says otherwise
CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
STABLE_S = 5.0  # a connection that lasted this long ends an outage, even if nothing happened on it
REFRESH_AT = 0.8  # of a token's time to live: when the next one is asked for
REFRESH_AGAIN_AT = 0.05  # likewise, after an attempt that failed
EXPIRES_S_MIN = 0.5  # what a time to live of 0 s stands for: it comes in whole seconds
FRAME_BYTES_MAX = 16 << 20  # inbound: far above the worker's own limit
EVENT_COST_BYTES = 256  # what an unread event costs beside its text, roughly
CLOSE_CODES = {4400: "protocol_abuse", 4401: "unauthorized", 4403: "forbidden", 4406: "version", 4408: "auth_timeout"}
CUTS = (OSError, InvalidHandshake, InvalidURI, ConnectionClosed)

Frame: TypeAlias = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")
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


class LikelyToken(TypedDict):
    """One of the likeliest tokens at a position, with the natural logarithm of its probability."""

    id: int
    text: str
    logprob: float


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
    banned_strings: list[str]
    raw: bool
    ignore_eos: bool
    token_healing: bool
    n: int
    priority: int
    include: list[str]
    channels: list[str]
    window: int
    coalesce_ms: int
    detach: bool
    deadline_ms: int


Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or messages like `{"role": "user", "content": "Hi"}`."""

KeySource: TypeAlias = str | Callable[[], str | Awaitable[str]] | None
"""A key, or a function that is asked for one whenever one is needed; it may wait, with or without `async`."""


class Options(TypedDict, total=False):
    """How a client behaves; all of it is optional."""

    transport: Literal["auto", "websocket", "sse"]
    """By default a WebSocket, or SSE if the worker is there but no WebSocket gets through."""
    retry_timeout_s: float
    """How long one outage may last: 60."""
    backoff_s: tuple[float, float]
    """The first and the longest pause between two attempts: 0.25 and 10."""
    unread_bytes_max: int
    """How much of a job may wait for its reader here, roughly: 4 MiB."""
    window: int
    """How many frames of a job the worker may send ahead of its reader: any number. Each job may have its own."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text: `n` tokens of the choice `index`. `kind` is text or reasoning.

    `ids`, `logprobs` and `top_logprobs` are there for a job that includes them, one for each token.
    """

    job_id: str
    cursor: str
    text: str
    n: int = 1
    index: int = 0
    kind: str = "text"
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[list[LikelyToken], ...] = ()


@dataclass(frozen=True, slots=True)
class Narration:
    """What happens to the job, in one sentence for people (`human`). `fields` is all that the worker said."""

    job_id: str
    cursor: str
    actor: str = ""
    action: str = ""
    human: str = ""
    phase: str = ""
    progress: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """The last event of every job. `status` is completed, cancelled, failed or expired."""

    job_id: str
    cursor: str
    status: str
    finish_reason: str | None = None
    reason: str | None = None
    stop_sequence: str | None = None
    finish_reasons: tuple[str, ...] = ()
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
    for name in known.keys() & {"ids", "logprobs", "top_logprobs", "finish_reasons"}:
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
        self.key_refused = False

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


class _NoKey(ConnectionError):
    """The program's function for the key failed, perhaps for now only."""


@dataclass(frozen=True)
class _Options:
    base: str
    token: KeySource
    transport: str = "auto"
    retry_timeout_s: float = 60.0
    backoff_s: tuple[float, float] = (0.25, 10.0)
    unread_bytes_max: int = 4 << 20
    window: int = 0

    @property
    def renews(self) -> bool:
        """Whether another key may be had when one is refused."""
        return callable(self.token)

    async def key(self) -> str:
        """Return the key of this moment, empty without one. Raises _NoKey."""
        if not callable(self.token):
            return self.token or ""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                given = await asyncio.to_thread(self.token)  # it may block
                return await given if inspect.isawaitable(given) else given
        except Exception as failure:
            raise _NoKey(f"The function for the token failed: {failure!r}") from failure

    async def headers(self) -> dict[str, str]:
        key = await self.key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def retry(self) -> _Retry:
        return _Retry(self.retry_timeout_s, *self.backoff_s)


class _Link(Enum):
    """How a job stands with the connection of this moment. Events count only when ATTACHED."""

    AWAY = auto()
    ASKED = auto()
    ATTACHED = auto()


@dataclass(eq=False, slots=True)
class _Ask:
    """A request about a job, beside following it: sent again after a cut, until it is answered."""

    frame: Frame
    sent: bool = False
    answer: Frame | None = None


class _Subscription:
    """One job, without I/O: what to send for it, what its frames mean, what waits for its reader.

    Nothing is sent from here. `notify` says that there may be something new; after a cut, `detach` makes it begin
    again, so that the worker is always brought from where it is to what the job wants now.
    """

    def __init__(self, request: Frame, after: str | None, options: _Options, notify: Callable[[], None]) -> None:
        self.job_id: str = request["job_id"]
        self.request = request
        self.received = after
        self.link = _Link.AWAY
        self.watching = True
        self.accepted: Frame | None = None
        self.failure: JobwireError | None = None
        self.ended = False  # the end is received, though perhaps not read
        self.cancelled = False  # the worker has heard of the cancel
        self.closed = False
        self.changed = asyncio.Event()
        self._window: int = request.pop("window", options.window)
        self._notify = notify
        self._retry = options.retry()
        self._unread: deque[Event] = deque()
        self._unread_bytes = 0
        self._unread_bytes_max = options.unread_bytes_max
        self._taken: str | None = None  # the cursor of an event that was taken and not acknowledged
        self._asks: list[_Ask] = []

    @property
    def over(self) -> bool:
        """Nothing more will be sent or received."""
        if self.ended or self.failure is not None:
            return True
        return self.closed and self.link is _Link.AWAY and self.exists and not self._asks

    @property
    def exists(self) -> bool:
        """The worker knows the job: to stop watching it, or to ask for more, need not wait until it is created."""
        return self.accepted is not None or self.received is not None or self.request["type"] == "subscribe"

    def wants(self, kind: str) -> bool:
        """Whether events of a type are to be read. A WebSocket brings no others; an event stream has them all."""
        return kind == "end" or kind in self.request.get("channels", (kind,))

    @property
    def has_news(self) -> bool:
        """The reader need not wait."""
        return bool(self._unread) or self.ended or self.closed

    def ask(self, **frame: Any) -> _Ask:
        ask = _Ask({**frame, "job_id": self.job_id})
        self._asks.append(ask)
        self._notify()
        return ask

    def close(self) -> None:
        self.closed, self.watching = True, False
        self._drop_unread()
        self.changed.set()
        self._notify()

    def fail(self, error: JobwireError) -> None:
        self.failure = self.failure or error
        self.changed.set()

    def detach(self) -> None:
        """The connection is gone."""
        self.link = _Link.AWAY
        for ask in self._asks:
            ask.sent = False

    def take(self) -> Event | None:
        """Take the oldest unread event; tokens that wait behind a token come with it."""
        if not self._unread:
            return None
        run = [self._unread.popleft()]
        while self._unread and _mergeable(run[0], self._unread[0]):
            run.append(self._unread.popleft())
        self._unread_bytes -= sum(map(_cost, run))
        if not (self.watching or self.closed) and self._unread_bytes <= self._unread_bytes_max // 2:
            self.watching = True
            self.changed.set()
            self._notify()
        if self._window and not isinstance(run[-1], Reset):
            self._taken = run[-1].cursor
            self._notify()
        return run[0] if len(run) == 1 else _merge(run)

    def take_asks(self) -> Iterator[_Ask]:
        """What is to be asked now; it counts as sent."""
        for ask in [ask for ask in self._asks if not (ask.sent or self.over)]:
            ask.sent = True
            yield ask

    def frames(self, ref: Callable[[Callable[[Frame], None]], str], window_max: float) -> Iterator[Frame]:
        """What to send over a WebSocket now; it counts as sent. `ref` keeps who wants the answer."""
        if self.link is _Link.AWAY and not self.over and (self.watching or not self.exists):
            self.link = _Link.ASKED
            resume = {} if self.received is None else {"after": self.received}
            window = min(self._window, window_max)
            credit = {"window": int(window)} if window else {}
            yield {**self.request, **resume, **credit, "ref": ref(self.answered)}
        for ask in self.take_asks():
            yield {**ask.frame, "ref": ref(partial(self.settle, ask))}
        if self.link is _Link.ATTACHED and not self.watching:
            self.link = _Link.AWAY
            yield {"type": "unsubscribe", "job_id": self.job_id}
        elif self.link is _Link.ATTACHED and self._taken is not None and window_max:
            # Forgotten before the send, which may wait while more is taken.
            cursor, self._taken = self._taken, None
            yield {"type": "ack", "job_id": self.job_id, "cursor": cursor}

    def settle(self, ask: _Ask, answer: Frame) -> None:
        """The worker has answered a request."""
        ask.answer = answer
        self._asks.remove(ask)
        self.cancelled |= ask.frame["type"] == "cancel" and answer.get("type") != "error"
        self.changed.set()

    def answered(self, answer: Frame) -> None:
        """The worker has answered the request to create or to follow the job."""
        if answer["type"] == "error":
            return self._refused(Refused.of(answer["error"]))
        self.link = _Link.ATTACHED
        self._retry.clear()
        self.accepted = answer
        if answer.get("reset"):
            self.reset()
        self.ended = bool(answer.get("over"))  # the cursor is at the end already: nothing follows
        self.changed.set()
        return self._notify()

    def reset(self) -> None:
        """The worker tells the job again from its start."""
        self._drop_unread()
        self.received = None
        self._push(Reset(self.job_id))

    def receive(self, event: Token | Narration | End) -> None:
        """Take in an event, unless it was on its way since before an unsubscribe: then it comes again."""
        if self.link is not _Link.ATTACHED:
            return
        self.received = event.cursor
        self.ended = isinstance(event, End)
        self._push(event)
        if self.watching and self._unread_bytes > self._unread_bytes_max and not self.ended:
            self.watching = False
            self._notify()

    def nothing_follows(self) -> None:
        """The cursor is at the end already."""
        self.ended = True
        self.changed.set()

    def _refused(self, refusal: Refused) -> None:
        """A job that was accepted before and is refused for now, waits; any other refusal is final."""
        self.link = _Link.AWAY
        if self.accepted is None or refusal.retry_after_ms is None:
            return self.fail(refusal)
        try:
            delay_s = self._retry.delay_s(refusal, refusal.retry_after_ms / 1000)
        except JobwireError as error:
            return self.fail(error)
        asyncio.get_running_loop().call_later(delay_s, self._notify)
        return None

    def _push(self, event: Event) -> None:
        if not self.closed:
            self._unread.append(event)
            self._unread_bytes += _cost(event)
        self.changed.set()

    def _drop_unread(self) -> None:
        self._unread.clear()
        self._unread_bytes, self._taken = 0, None


class Job:
    """The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.

    `cursor` is where the reader is: give it to `subscribe(id, after=cursor)`, anywhere, to go on from there.
    Leaving a loop early leaves the job as it is: iterate again, `cancel()` it, or `aclose()` to stop watching it.
    """

    def __init__(self, subscription: _Subscription) -> None:
        self.id = subscription.job_id
        self.cursor = subscription.received
        self.end: End | None = None
        self._subscription = subscription
        self._done = False
        self._texts: dict[int, list[str]] = {}

    @property
    def accepted(self) -> Mapping[str, Any]:
        """The worker's latest answer: state, queue, sse_url. Empty before it."""
        return self._subscription.accepted or {}

    async def wait_accepted(self) -> Self:
        """Wait until the worker has accepted the job. Raises Refused with the worker's code."""
        await self._wait_until(lambda: self._subscription.accepted is not None)
        return self

    async def __aenter__(self) -> Self:
        """Use `async with` to have it closed whenever the block is left."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. Raises Refused, JobFailed instead of a failed or expired End, ConnectionFailed."""
        if not self._done:
            await self._wait_until(lambda: self._subscription.has_news)
        event = None if self._done else self._subscription.take()
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

    async def texts(self) -> list[str]:
        """Wait for the end and return the whole text of each choice, for a job with `n`. Raises like `text`."""
        first = await self.text()
        count = max(self._subscription.request.get("n") or 1, *(index + 1 for index in self._texts), 1)
        return [first, *[await self.text(index) for index in range(1, count)]]

    async def cancel(self) -> None:
        """Cancel the job and wait until the worker has heard it; its End follows. A job that has ended is success."""
        if not (self._subscription.cancelled or self._subscription.ended):
            await self._ask(type="cancel")

    async def update(self, *, priority: int) -> Mapping[str, Any]:
        """Change the priority of a job that waits (0 to 9, higher first); return the answer, with its `state`.

        Narration tells its new place in the queue. Nothing happens to a job that has ended. Raises Refused, over SSE
        always: it has no such request.
        """
        return self.accepted if self._subscription.ended else await self._ask(type="update", priority=priority)

    async def aclose(self) -> None:
        """Stop watching the job, which goes on."""
        self._done = True
        self._subscription.close()

    async def _ask(self, **frame: Any) -> Frame:
        ask = self._subscription.ask(**frame)
        await self._wait_until(lambda: ask.answer is not None or self._subscription.ended)
        answer = ask.answer or {}
        if answer.get("type") == "error":
            raise Refused.of(answer["error"])
        return answer

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
    """The jobs of one program at one worker, over one connection. Made by `connect`, used with `async with`."""

    def __init__(self, url: str, token: KeySource, options: Options) -> None:
        self._options = _Options(_base_url(url), token, **options)
        self._subscriptions: dict[str, _Subscription] = {}  # by job id, those that are not over
        self._failure: JobwireError | None = None
        if self._options.transport not in ("auto", "websocket", "sse"):
            raise ValueError(f"Expected the transport auto, websocket or sse, got {self._options.transport!r}")
        over_sse = self._options.transport == "sse"
        self._transport: _Transport = self._sse() if over_sse else self._websocket()

    @property
    def transport(self) -> str:
        """What carries the jobs now: "websocket" or "sse"."""
        return self._transport.name

    @property
    def hello(self) -> Mapping[str, Any]:
        """What the worker said of itself and its limits. Empty over SSE."""
        return self._transport.hello

    async def __aenter__(self) -> Self:
        """Connect. Raises ConnectionFailed at once if that does not work; only later cuts are retried."""
        try:
            await self._transport.open()
        except CUTS as cut:
            no_proxy = isinstance(cut, ConnectionClosed | InvalidURI | _NoKey)
            if self._options.transport != "auto" or no_proxy or not await _answers_http(self._options.base):
                _wait_s(cut, renews=False)
                raise ConnectionFailed(f"Cannot connect: {cut!r}", "connection_failed") from cut
            self._transport = self._sse()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Jobs go on at the worker; who waits for one here gets ConnectionFailed."""
        self._fail(ConnectionFailed("The client is closed", "closed"))
        await self._transport.aclose()

    def run(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> Job:
        """Start a job and return at once; a refusal meets its reader. Raises ConnectionFailed if the client is closed.

        `job_id` (16 to 64 of A-Z a-z 0-9 _ -) makes it idempotent: the same request again is the same job.
        `after` resumes it at a cursor, and never runs it again.
        """
        source = {"prompt": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}
        return self._start({"type": "create", "job_id": job_id or str(uuid.uuid4()), **source, **params}, after)

    async def create(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> Job:
        """Start a job like `run` and wait until the worker has accepted it. Raises Refused with the worker's code."""
        return await self.run(prompt, job_id=job_id, after=after, **params).wait_accepted()

    def subscribe(
        self,
        job_id: str,
        *,
        after: str | None = None,
        channels: Sequence[str] | None = None,
        window: int | None = None,
    ) -> Job:
        """Watch a job that was created elsewhere, from its beginning or after a cursor."""
        chosen: Frame = {} if channels is None else {"channels": list(channels)}
        if window is not None:
            chosen["window"] = window
        return self._start({"type": "subscribe", "job_id": job_id, **chosen}, after)

    def _start(self, request: Frame, after: str | None) -> Job:
        job_id = request["job_id"]
        if self._failure is not None:
            raise self._failure
        if job_id in self._subscriptions:
            raise ValueError(f"This client watches job {job_id} already")
        subscription = _Subscription(request, after, self._options, lambda: self._notify(subscription))
        self._notify(subscription)
        return Job(subscription)

    def _notify(self, subscription: _Subscription) -> None:
        """See to it that the wishes of a subscription are met: of a new one, or of one closed before (to cancel)."""
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

    def _websocket(self) -> _WebSocketTransport:
        return _WebSocketTransport(self._options, self._subscriptions, self._fail)

    def _sse(self) -> _SseTransport:
        return _SseTransport(self._options, self._subscriptions)


class _Transport(Protocol):
    """What carries the jobs of a client."""

    name: str
    hello: Frame

    async def open(self) -> None:
        """Connect. Raises one of CUTS, or ConnectionFailed."""

    def notify(self, subscription: _Subscription) -> None:
        """Do what a subscription wants now."""

    async def aclose(self) -> None: ...


def _forget_if_over(subscriptions: dict[str, _Subscription], subscription: _Subscription) -> None:
    if subscription.over and subscriptions.get(subscription.job_id) is subscription:
        del subscriptions[subscription.job_id]


class _GoAway(ConnectionError):
    """The worker takes nothing new on this connection; the jobs that it carries may finish."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(f"The worker goes away: {frame.get('reason')}")
        self.retry_s = frame.get("retry_ms", 0) / 1000


class _WebSocketTransport:
    """All jobs over one WebSocket, which is opened again after a cut when a job needs it.

    After a goaway there may be a second one: the old one carries its jobs to their end, or to its own.
    """

    name = "websocket"

    def __init__(
        self, options: _Options, subscriptions: dict[str, _Subscription], fail: Callable[[JobwireError], None]
    ) -> None:
        self.hello: Frame = {}
        self._options = options
        self._subscriptions = subscriptions
        self._fail = fail
        self._retry = options.retry()
        self._connections: list[_Connection] = []
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._spawn(self._run(self._adopt(await self._connect())))

    def notify(self, subscription: _Subscription) -> None:
        connection = self._carrier(subscription) or self._current
        if connection is None:
            self._wake.set()
        else:
            connection.notify(subscription)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            await connection.close()

    @property
    def _current(self) -> _Connection | None:
        """The connection that takes new jobs."""
        return next((connection for connection in self._connections if not connection.gone.done()), None)

    def _carrier(self, subscription: _Subscription) -> _Connection | None:
        job_id = subscription.job_id
        return next((carrier for carrier in self._connections if carrier.jobs.get(job_id) is subscription), None)

    @property
    def _homeless(self) -> list[_Subscription]:
        return [job for job in self._subscriptions.values() if self._carrier(job) is None]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, connection: _Connection) -> None:
        """Replace the connection when it takes nothing new and a job needs one."""
        try:
            while True:
                reason = await connection.gone
                if connection.lasted_s > STABLE_S:
                    self._retry.clear()
                connection = self._adopt(await self._reconnect(reason))
        except JobwireError as error:
            self._fail(error)
        except Exception as bug:
            logger.exception("the client failed")
            self._fail(ConnectionFailed(f"The client failed: {bug!r}", "client_failed"))

    async def _reconnect(self, reason: Exception) -> _Connection:
        """Connect again. Raises ConnectionFailed when that must not be or has lasted too long."""
        while True:
            if not isinstance(reason, CUTS):
                raise reason
            wait_s = reason.retry_s if isinstance(reason, _GoAway) else _wait_s(reason, renews=self._options.renews)
            while not self._homeless:
                self._wake.clear()
                await self._wake.wait()
            delay_s = self._retry.delay_s(reason, wait_s)
            logger.info("reconnecting in %.2f s: %s", delay_s, reason)
            await asyncio.sleep(delay_s)
            try:
                return await self._connect()
            except CUTS as cut:
                reason = cut

    async def _connect(self) -> _Connection:
        try:
            return await self._dial()
        except CUTS as cut:
            if not (self._options.renews and _is_unauthorized(cut)):
                raise
            return await self._dial()  # with another key

    async def _dial(self) -> _Connection:
        key = await self._options.key()
        socket = await open_websocket(
            self._options.base.replace("http", "ws", 1) + "/v1/ws",
            subprotocols=[Subprotocol("jobwire.v1")],
            additional_headers={"Authorization": f"Bearer {key}"} if key else {},
            compression=None,  # merged frames save more, and cost nothing
            ping_interval=None,  # the worker's heartbeat does it
            max_size=FRAME_BYTES_MAX,
            open_timeout=CONNECT_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                hello = _parse(await socket.recv())
                if hello.get("auth") == "required":  # something between us took the header
                    await socket.send(json.dumps({"type": "auth", "token": key}))
                    hello = _parse(await socket.recv())
        except BaseException:
            await socket.close()
            raise
        return _Connection(socket, hello, self._options, self._subscriptions, self._retry.clear)

    def _adopt(self, connection: _Connection) -> _Connection:
        """Give a new connection the jobs that have none."""
        self.hello = connection.hello
        homeless = self._homeless
        self._connections.append(connection)
        for subscription in homeless:
            connection.notify(subscription)
        self._spawn(self._carry(connection))
        return connection

    async def _carry(self, connection: _Connection) -> None:
        """Serve the jobs of a connection until it ends; then they need another one."""
        reason: Exception = ConnectionError("The client is closed")
        try:
            await connection.serve()
        except* Exception as group:
            reason = group.exceptions[0]
        finally:
            self._connections.remove(connection)
            for subscription in connection.jobs.values():
                subscription.detach()
                _forget_if_over(self._subscriptions, subscription)
            connection.go(reason)
            self._wake.set()
            if (current := self._current) is not None:
                for subscription in self._homeless:
                    current.notify(subscription)
            await connection.close()


class _Connection:
    """One WebSocket after the hello, and the jobs that it carries."""

    def __init__(
        self,
        socket: ClientConnection,
        hello: Frame,
        options: _Options,
        subscriptions: dict[str, _Subscription],
        works: Callable[[], None],
    ) -> None:
        self.hello = hello
        self.jobs: dict[str, _Subscription] = {}
        self.gone: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done when it takes no new jobs any more; the result is why."""
        self._since = time.monotonic()
        self._socket = socket
        self._options = options
        self._subscriptions = subscriptions
        self._works = works
        self._to_send: dict[_Subscription, None] = {}  # a set in order
        self._answers: dict[str, tuple[_Subscription, Callable[[Frame], None]]] = {}  # by ref: who wants them
        self._refs = 0
        self._wake = asyncio.Event()

    @property
    def lasted_s(self) -> float:
        return time.monotonic() - self._since

    def go(self, reason: Exception) -> None:
        """Take no new jobs from now on."""
        if not self.gone.done():
            self.gone.set_result(reason)

    def notify(self, subscription: _Subscription) -> None:
        """Send what a subscription has to say."""
        self.jobs[subscription.job_id] = subscription
        self._to_send[subscription] = None
        self._wake.set()

    async def serve(self) -> None:
        """Serve until the connection ends, which is always an ExceptionGroup."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._write())
            tasks.create_task(self._keep_authorized())

    async def close(self) -> None:
        await self._socket.close()

    async def _read(self) -> None:
        silence_s = 2 * self._limit("heartbeat_s", HEARTBEAT_S)
        while self.jobs or not self.gone.done():
            async with asyncio.timeout(silence_s):
                message = await self._socket.recv()
            self._receive(_parse(message))
        raise ConnectionError("All jobs of this connection are over")

    def _receive(self, frame: Frame) -> None:
        kind, subscription = frame.get("type"), self.jobs.get(frame.get("job_id", ""))
        if kind in ("accepted", "error"):
            subscription, answered = self._answers.pop(frame.get("ref", ""), (None, None))
            if answered is not None:
                answered(frame)
            elif kind == "error":
                logger.warning("the worker reports: %s", frame.get("error"))
        elif kind == "goaway":
            self.go(_GoAway(frame))
        elif subscription is not None and (event := event_of(frame)) is not None:
            self._works()
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
                    await self._send(subscription, json.dumps(frame))
                self._forget_if_over(subscription)

    async def _send(self, subscription: _Subscription, message: str) -> None:
        bytes_max = self._limit("max_frame_bytes", FRAME_BYTES_MAX)
        if len(message) <= bytes_max:  # it is ASCII
            return await self._socket.send(message)
        # The worker would close the connection of all jobs.
        refusal = Refused(f"Expected a request of at most {bytes_max:.0f} bytes, got {len(message)}", "frame_too_large")
        return subscription.fail(refusal)

    async def _keep_authorized(self) -> None:
        """Send another key before the time of the one in use is over."""
        share = REFRESH_AT
        while self._options.renews and (expires_s := self.hello.get("expires_in")) is not None:
            await asyncio.sleep(share * (expires_s or EXPIRES_S_MIN))
            try:
                key = await self._options.key()
            except ConnectionError as failure:
                logger.warning("%s", failure)
                share = REFRESH_AGAIN_AT
            else:
                await self._socket.send(json.dumps({"type": "auth", "token": key}))
                share = REFRESH_AT

    def _forget_if_over(self, subscription: _Subscription) -> None:
        if subscription.over and self.jobs.get(subscription.job_id) is subscription:
            del self.jobs[subscription.job_id]
        _forget_if_over(self._subscriptions, subscription)

    def _ref(self, subscription: _Subscription, answered: Callable[[Frame], None]) -> str:
        self._refs += 1
        self._answers[str(self._refs)] = subscription, answered
        return str(self._refs)

    def _limit(self, name: str, default: float) -> float:
        return float(self.hello.get("limits", {}).get(name, default))


class _SseTransport:
    """Each job as a POST and an event stream, which resumes with Last-Event-ID."""

    name = "sse"

    def __init__(self, options: _Options, subscriptions: dict[str, _Subscription]) -> None:
        self.hello: Frame = {}
        self._options = options
        self._subscriptions = subscriptions
        self._http: httpx.AsyncClient | None = None
        self._streams: dict[_Subscription, asyncio.Task[None]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """There is nothing to connect: the first request does it."""

    def notify(self, subscription: _Subscription) -> None:
        stream = self._streams.get(subscription)
        if subscription.closed and subscription.exists:
            if stream is not None:
                stream.cancel()
        elif stream is None:
            self._streams[subscription] = stream = asyncio.create_task(self._run(subscription))
            stream.add_done_callback(lambda _: self._left(subscription))
        if subscription.exists:
            for ask in subscription.take_asks():
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

    async def _run(self, subscription: _Subscription) -> None:
        try:
            await self._follow(subscription)
        except JobwireError as error:
            subscription.fail(error)
        except Exception as bug:
            logger.exception("the client failed")
            subscription.fail(ConnectionFailed(f"The client failed: {bug!r}", "client_failed"))

    def _left(self, subscription: _Subscription) -> None:
        subscription.link = _Link.AWAY
        del self._streams[subscription]
        _forget_if_over(self._subscriptions, subscription)

    async def _follow(self, subscription: _Subscription) -> None:
        if not subscription.exists:
            body = {name: value for name, value in subscription.request.items() if name != "type"}
            answer = await self._request("POST", "/v1/jobs", body)
            subscription.answered({"type": "accepted", **answer})
        retry = self._options.retry()
        while not (subscription.over or subscription.closed):
            try:
                await self._read(subscription, retry)
                if not (subscription.over or subscription.closed):
                    raise ConnectionFailed("The stream stopped before the end of the job", "connection_failed")
            except (httpx.TransportError, ConnectionError, ConnectionFailed) as cut:
                await asyncio.sleep(retry.delay_s(cut))
            except Refused as refusal:
                if refusal.retry_after_ms is not None:
                    await asyncio.sleep(retry.delay_s(refusal, refusal.retry_after_ms / 1000))
                elif not self._is_worth_another_key(refusal, retry):
                    raise

    async def _read(self, subscription: _Subscription, retry: _Retry) -> None:
        """Read one stream until it ends, is silent, or the job is over. It is read no faster than its reader reads."""
        resume = {} if subscription.received is None else {"Last-Event-ID": subscription.received}
        headers = {"Accept": "text/event-stream", **resume, **await self._options.headers()}
        path = f"{_job_path(subscription)}/stream"
        async with self._client().stream("GET", self._options.base + path, headers=headers) as response:
            if response.status_code == 204:
                subscription.nothing_follows()
                return
            await _check(response)
            if subscription.accepted is None:
                known = {"job_id": subscription.job_id, "state": "running", "sse_url": path}
                subscription.answered({"type": "accepted", **known})
            subscription.link = _Link.ATTACHED
            async for frame in _sse_frames(response):
                if frame.get("reset"):
                    subscription.reset()
                elif (event := event_of(frame)) is not None and subscription.wants(frame["type"]):
                    subscription.receive(event)
                retry.clear()
                while not (subscription.watching or subscription.closed or subscription.over):
                    subscription.changed.clear()
                    await subscription.changed.wait()
                if subscription.over or subscription.closed:
                    return

    async def _ask(self, subscription: _Subscription, ask: _Ask) -> None:
        answer: Frame
        try:
            if ask.frame["type"] != "cancel":
                raise Refused("Over SSE a priority is not changed; a WebSocket can", "unsupported_operation")
            answer = await self._request("DELETE", _job_path(subscription))
        except JobwireError as error:
            answer = {"type": "error", "error": {"code": error.code, "detail": error.detail, **error.problem}}
        subscription.settle(ask, answer)
        _forget_if_over(self._subscriptions, subscription)

    async def _request(self, method: str, path: str, body: Frame | None = None) -> Frame:
        """One idempotent request, repeated while there is no answer. Raises Refused, ConnectionFailed."""
        retry = self._options.retry()
        while True:
            try:
                headers = {"Accept": "application/json", **await self._options.headers()}
                response = await self._client().request(method, self._options.base + path, json=body, headers=headers)
                await _check(response)
                return _parse(response.content)
            except (httpx.TransportError, ConnectionError) as cut:
                await asyncio.sleep(retry.delay_s(cut))
            except Refused as refusal:
                if not self._is_worth_another_key(refusal, retry):
                    raise

    def _is_worth_another_key(self, refusal: Refused, retry: _Retry) -> bool:
        """Once in a row, if there is a function for keys."""
        worth = refusal.status == 401 and self._options.renews and not retry.key_refused
        retry.key_refused = True
        return worth

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            # Two heartbeats of silence are a cut.
            timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=2 * HEARTBEAT_S)
            self._http = httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None))
        return self._http


class SyncJob:
    """A job for programs without asyncio: iterate, or call `text()`, or first one and then the other."""

    def __init__(self, job: Job, client: SyncClient) -> None:
        self.id = job.id
        self._job = job
        self._wait = client.wait

    @property
    def cursor(self) -> str | None:
        """Where the reader is: `subscribe(id, after=cursor)` goes on from there, anywhere."""
        return self._job.cursor

    @property
    def end(self) -> End | None:
        """The last event, when it is read."""
        return self._job.end

    @property
    def accepted(self) -> Mapping[str, Any]:
        """The worker's latest answer: state, queue, sse_url. Empty before it."""
        return self._job.accepted

    def __enter__(self) -> Self:
        """Use `with` to have it closed whenever the block is left."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """Wait for the next event. Raises Refused, JobFailed instead of a failed or expired End, ConnectionFailed."""
        try:
            return self._wait(self._job.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def text(self, index: int = 0) -> str:
        """Wait for the end and return the whole text of a choice, whatever was read before. Raises JobCancelled."""
        return self._wait(self._job.text, index)

    def texts(self) -> list[str]:
        """Wait for the end and return the whole text of each choice, for a job with `n`. Raises JobCancelled."""
        return self._wait(self._job.texts)

    def cancel(self) -> None:
        """Cancel the job and wait until the worker has heard it; its End follows. A job that has ended is success."""
        self._wait(self._job.cancel)

    def update(self, *, priority: int) -> Mapping[str, Any]:
        """Change the priority of a job that waits (0 to 9, higher first); return the answer. Raises Refused."""
        return self._wait(self._job.update, priority=priority)

    def close(self) -> None:
        """Stop watching the job, which goes on."""
        self._wait(self._job.aclose)


class SyncClient:
    """A client for programs without asyncio, for any number of threads. Made by `connect_sync`, used with `with`.

    It runs a `Client` in a thread of its own. A wait may be interrupted (Ctrl-C) and taken up: no text is lost.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._lock = threading.Lock()
        self._open = False

    @property
    def transport(self) -> str:
        """What carries the jobs now: "websocket" or "sse"."""
        return self._client.transport

    @property
    def hello(self) -> Mapping[str, Any]:
        """What the worker said of itself and its limits. Empty over SSE."""
        return self._client.hello

    def __enter__(self) -> Self:
        """Connect. Raises ConnectionFailed at once if that does not work; only later cuts are retried."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="jobwire", daemon=True)
        self._thread.start()
        self._open = True
        try:
            self.wait(self._client.__aenter__)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Jobs go on at the worker; who waits for one here gets ConnectionFailed."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            closed = asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        closed.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> SyncJob:
        """Start a job and return at once, like `Client.run`; a refusal meets its reader."""
        return self._job(lambda: self._client.run(prompt, job_id=job_id, after=after, **params))

    def create(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> SyncJob:
        """Start a job like `run` and wait until the worker has accepted it. Raises Refused with the worker's code."""
        return SyncJob(self.wait(self._client.create, prompt, job_id=job_id, after=after, **params), self)

    def subscribe(
        self,
        job_id: str,
        *,
        after: str | None = None,
        channels: Sequence[str] | None = None,
        window: int | None = None,
    ) -> SyncJob:
        """Watch a job that was created elsewhere, from its beginning or after a cursor."""
        return self._job(lambda: self._client.subscribe(job_id, after=after, channels=channels, window=window))

    def wait(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function of the client in its thread, and wait. Raises ConnectionFailed if it is closed."""
        with self._lock:
            if not self._open:
                raise ConnectionFailed("The client is closed", "closed")
            future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # the wait was interrupted
            raise

    def _job(self, start: Callable[[], Job]) -> SyncJob:
        async def started() -> Job:
            return start()

        return SyncJob(self.wait(started), self)

    async def _finish(self) -> None:
        await self._client.aclose()
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*waiting, return_exceptions=True)


def connect(url: str, token: KeySource = None, **options: Unpack[Options]) -> Client:
    """Return a client for the worker at `url` (http, https, ws or wss), to be used with `async with`.

    `token` is a key, or a function that returns one, asked again before it expires and when it is refused.
    """
    return Client(url, token, options)


def connect_sync(url: str, token: KeySource = None, **options: Unpack[Options]) -> SyncClient:
    """Return the same client for programs without asyncio, to be used with `with`."""
    return SyncClient(Client(url, token, options))


def _base_url(url: str) -> str:
    """The http(s) URL that the paths of the protocol follow, whatever form of the worker's address is given."""
    parts = urlsplit(url)
    scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise ValueError(f"Expected a URL like http://127.0.0.1:8080, got {url!r}")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1/ws"), "", ""))


def _job_path(subscription: _Subscription) -> str:
    return "/v1/jobs/" + quote(subscription.job_id, safe="")


def _parse(message: str | bytes) -> Frame:
    """Parse a message. What is no JSON object counts as a cut connection."""
    try:
        frame = json.loads(message)
    except ValueError as error:
        raise ConnectionError("The worker sent something that is not JSON") from error
    if not isinstance(frame, dict):
        raise ConnectionError("The worker sent JSON that is not an object")
    return frame


def _is_unauthorized(cut: Exception) -> bool:
    if isinstance(cut, InvalidStatus):
        return cut.response.status_code == 401
    return isinstance(cut, ConnectionClosed) and cut.rcvd is not None and cut.rcvd.code == 4401


def _wait_s(cut: Exception, *, renews: bool) -> float:
    """Return the least to wait after the end of a connection. Raises ConnectionFailed when it is final.

    A refused key is final, unless another one can be had (`renews`).
    """
    if renews and _is_unauthorized(cut):
        return 0.0
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


async def _answers_http(base: str) -> bool:
    """Whether the worker is there, though no WebSocket gets through to it."""
    try:
        async with httpx.AsyncClient(timeout=CONNECT_TIMEOUT_S) as http:
            return (await http.get(f"{base}/")).is_success
    except httpx.TransportError:
        return False


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


async def _sse_frames(response: httpx.Response) -> AsyncIterator[Frame]:
    """The frames in a stream. Lines end in LF or CRLF only: the line splitting of str would cut at U+2028 too."""
    rest, data = b"", b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                data += line[5:]
            elif not line and data:
                frame, data = _parse(data), b""
                yield frame
