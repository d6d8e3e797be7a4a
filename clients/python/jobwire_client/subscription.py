"""One job between the worker and its reader: a state machine without I/O, the same over WebSocket and SSE."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from .errors import JobwireError, Refused
from .events import End, Event, Frame, Narration, Reset, Token
from .options import Settings
from .unread import Unread


class Link(Enum):
    """How a job stands with the current connection. Events count only when ATTACHED."""

    AWAY = auto()
    WAITING = auto()  # refused for now: to be asked again in a while
    ASKED = auto()
    ATTACHED = auto()


class Step(Enum):
    """What changes a link."""

    ASK = auto()
    ATTACH = auto()
    REFUSE = auto()
    ASK_AGAIN = auto()
    DETACH = auto()


NEXT: Mapping[Link, Mapping[Step, Link]] = {
    # Over HTTP a stream is opened without a request that could be refused for now.
    Link.AWAY: {Step.ASK: Link.ASKED, Step.ATTACH: Link.ATTACHED, Step.DETACH: Link.AWAY},
    Link.WAITING: {Step.ASK_AGAIN: Link.AWAY, Step.DETACH: Link.AWAY},
    Link.ASKED: {Step.ATTACH: Link.ATTACHED, Step.REFUSE: Link.WAITING, Step.DETACH: Link.AWAY},
    Link.ATTACHED: {Step.ATTACH: Link.ATTACHED, Step.DETACH: Link.AWAY},
}
"""The link that follows each step. A step that is not here is a bug of this client."""


@dataclass(eq=False, slots=True)
class Ask:
    """A request about a job, other than to follow it: sent again after each cut until it is answered."""

    frame: Frame
    sent: bool = False
    answer: Frame | None = None


class Subscription:
    """What to send for a job, what its frames mean, and which events wait for its reader.

    Nothing is sent from here. `notify` reports that there may be something to send. After a cut, `detach` makes
    `frames` start over, so that the worker is always brought from its present state to what the job needs now.
    """

    def __init__(self, request: Frame, after: str | None, settings: Settings, notify: Callable[[], None]) -> None:
        self.job_id: str = request["job_id"]
        self.request = request
        self.received = after
        self.link = Link.AWAY
        self.watching = True
        self.accepted: Frame | None = None
        self.failure: JobwireError | None = None
        self.ended = False  # the end was received, though perhaps not read
        self.closed = False
        self.changed = asyncio.Event()
        self._window: int = request.pop("window", settings.window)
        self._notify = notify
        self._retry = settings.retry()
        self._unread = Unread()
        self._unread_bytes_max = settings.unread_bytes_max
        self._unacknowledged: str | None = None  # the cursor of the last event that was read
        self._asks: list[Ask] = []

    @property
    def over(self) -> bool:
        """Whether nothing is left to send or to receive."""
        if self.ended or self.failure is not None:
            return True
        return self.closed and self.link in (Link.AWAY, Link.WAITING) and self.exists and not self._asks

    @property
    def exists(self) -> bool:
        """Whether the worker knows the job, so that requests about it need not wait until it is created."""
        return self.accepted is not None or self.received is not None or self.request["type"] == "subscribe"

    @property
    def has_news(self) -> bool:
        """Whether the reader need not wait."""
        return bool(self._unread) or self.ended or self.closed

    # ---- from the reader ---------------------------------------------------------------------------------------------

    def pop(self) -> Event | None:
        """Pop the oldest unread event, merged with the tokens behind it if it is a token."""
        if not self._unread:
            return None
        event = self._unread.pop()
        if not (self.watching or self.closed) and self._unread.cost_bytes <= self._unread_bytes_max // 2:
            self.watching = True
            self.changed.set()
            self._notify()
        if self._window and not isinstance(event, Reset):
            self._unacknowledged = event.cursor
            self._notify()
        return event

    def ask(self, **frame: Any) -> Ask:
        ask = Ask({**frame, "job_id": self.job_id})
        self._asks.append(ask)
        self._notify()
        return ask

    def close(self) -> None:
        self.closed, self.watching = True, False
        self._drop_unread()
        self.changed.set()
        self._notify()

    # ---- to the worker -----------------------------------------------------------------------------------------------

    def frames(self, ref: Callable[[Callable[[Frame], None]], str], window_max: float) -> Iterator[Frame]:
        """Yield the frames to send over a WebSocket now; each counts as sent.

        `ref` registers a callback for the answer to a frame and returns the reference to put into it.
        """
        if self.link is Link.AWAY and not self.over and (self.watching or not self.exists):
            self.step(Step.ASK)
            resume = {} if self.received is None else {"after": self.received}
            window = min(self._window, window_max)
            credit = {"window": int(window)} if window else {}
            yield {**self.request, **resume, **credit, "ref": ref(self.answered)}
        for ask in self.unsent_asks():
            yield {**ask.frame, "ref": ref(partial(self.settle, ask))}
        if self.link is Link.ATTACHED and not self.watching:
            self.step(Step.DETACH)
            yield {"type": "unsubscribe", "job_id": self.job_id}
        elif self.link is Link.ATTACHED and self._unacknowledged is not None and window_max:
            # Cleared before the send, which may wait while more is read.
            cursor, self._unacknowledged = self._unacknowledged, None
            yield {"type": "ack", "job_id": self.job_id, "cursor": cursor}

    def unsent_asks(self) -> Iterator[Ask]:
        """Yield the requests to send now; each counts as sent."""
        for ask in [ask for ask in self._asks if not (ask.sent or self.over)]:
            ask.sent = True
            yield ask

    # ---- from the worker ---------------------------------------------------------------------------------------------

    def answered(self, answer: Frame) -> None:
        """Process the answer to the request to create or to follow the job."""
        if answer["type"] == "error":
            return self._refused(Refused.of(answer["error"]))
        self.step(Step.ATTACH)
        self._retry.clear()
        self.accepted = answer
        if answer.get("reset"):
            self.reset()
        if answer.get("over"):
            self.nothing_follows()
        self.changed.set()
        return self._notify()

    def settle(self, ask: Ask, answer: Frame) -> None:
        """Process the answer to another request."""
        ask.answer = answer
        self._asks.remove(ask)
        self.changed.set()

    def receive(self, event: Token | Narration | End) -> None:
        """Store an event. One that was sent before an unsubscribe is dropped: it will be sent again."""
        if self.link is not Link.ATTACHED:
            return
        self.received = event.cursor
        self.ended = isinstance(event, End)
        self._push(event)
        if self.watching and self._unread.cost_bytes > self._unread_bytes_max and not self.ended:
            self.watching = False
            self._notify()

    def reset(self) -> None:
        """Forget all events: the worker sends the job again from its start."""
        self._drop_unread()
        self.received = None
        self._push(Reset(self.job_id))

    def nothing_follows(self) -> None:
        """End the job without an event: the cursor is at its end already."""
        self.ended = True
        self.changed.set()

    def fail(self, error: JobwireError) -> None:
        """Give up the job; the first error is kept for its reader."""
        self.failure = self.failure or error
        self.changed.set()

    def detach(self) -> None:
        """Start over after the connection is lost: follow the job and ask again on the next one."""
        self.step(Step.DETACH)
        for ask in self._asks:
            ask.sent = False

    def step(self, step: Step) -> None:
        """Change the link as the table says."""
        self.link = NEXT[self.link][step]

    def _refused(self, refusal: Refused) -> None:
        """Wait if the job was accepted before and the refusal is for now; else give up."""
        self.step(Step.REFUSE)
        if self.accepted is None or refusal.retry_after_ms is None:
            return self.fail(refusal)
        try:
            delay_s = self._retry.delay_s(refusal, refusal.retry_after_ms / 1000)
        except JobwireError as error:
            return self.fail(error)
        asyncio.get_running_loop().call_later(delay_s, self._ask_again)
        return None

    def _ask_again(self) -> None:
        if Step.ASK_AGAIN in NEXT[self.link]:
            self.step(Step.ASK_AGAIN)
            self._notify()

    def _push(self, event: Event) -> None:
        if not self.closed:
            self._unread.push(event)
        self.changed.set()

    def _drop_unread(self) -> None:
        self._unread.clear()
        self._unacknowledged = None


class Subscriptions(dict[str, Subscription]):
    """The subscriptions that are not over, by job id."""

    def forget_if_over(self, subscription: Subscription) -> None:
        if subscription.over and self.get(subscription.job_id) is subscription:
            del self[subscription.job_id]
