"""One job, as the worker and its reader leave it: a state machine without I/O, the same over WebSocket and SSE."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from .errors import JobwireError, Refused
from .events import End, Event, Frame, Narration, Reset, Token
from .options import Settings
from .unread import Unread


class Link(Enum):
    """How a job stands with the connection of this moment. Events count only when ATTACHED."""

    AWAY = auto()
    WAITING = auto()  # refused for now: to be asked again in a while
    ASKED = auto()
    ATTACHED = auto()


@dataclass(eq=False, slots=True)
class Ask:
    """A request about a job, beside following it: sent again after a cut, until it is answered."""

    frame: Frame
    sent: bool = False
    answer: Frame | None = None


class Subscription:
    """What to send for a job, what its frames mean, what waits for its reader.

    Nothing is sent from here. `notify` says that there may be something new; after a cut, `detach` makes it begin
    again, so that the worker is always brought from where it is to what the job wants now.
    """

    def __init__(self, request: Frame, after: str | None, settings: Settings, notify: Callable[[], None]) -> None:
        self.job_id: str = request["job_id"]
        self.request = request
        self.received = after
        self.link = Link.AWAY
        self.watching = True
        self.accepted: Frame | None = None
        self.failure: JobwireError | None = None
        self.ended = False  # the end is received, though perhaps not read
        self.closed = False
        self.changed = asyncio.Event()
        self._window: int = request.pop("window", settings.window)
        self._notify = notify
        self._retry = settings.retry()
        self._unread = Unread()
        self._unread_bytes_max = settings.unread_bytes_max
        self._taken: str | None = None  # the cursor of an event that was taken and not acknowledged
        self._asks: list[Ask] = []

    @property
    def over(self) -> bool:
        """Nothing more will be sent or received."""
        if self.ended or self.failure is not None:
            return True
        return self.closed and self.link in (Link.AWAY, Link.WAITING) and self.exists and not self._asks

    @property
    def exists(self) -> bool:
        """The worker knows the job: to stop watching it, or to ask for more, need not wait until it is created."""
        return self.accepted is not None or self.received is not None or self.request["type"] == "subscribe"

    @property
    def has_news(self) -> bool:
        """The reader need not wait."""
        return bool(self._unread) or self.ended or self.closed

    # ---- from the reader ---------------------------------------------------------------------------------------------

    def take(self) -> Event | None:
        """Take the oldest unread event; tokens that wait behind a token come with it."""
        if not self._unread:
            return None
        event = self._unread.take()
        if not (self.watching or self.closed) and self._unread.cost_bytes <= self._unread_bytes_max // 2:
            self.watching = True
            self.changed.set()
            self._notify()
        if self._window and not isinstance(event, Reset):
            self._taken = event.cursor
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
        """What to send over a WebSocket now; it counts as sent. `ref` keeps who wants the answer."""
        if self.link is Link.AWAY and not self.over and (self.watching or not self.exists):
            self.link = Link.ASKED
            resume = {} if self.received is None else {"after": self.received}
            window = min(self._window, window_max)
            credit = {"window": int(window)} if window else {}
            yield {**self.request, **resume, **credit, "ref": ref(self.answered)}
        for ask in self.take_asks():
            yield {**ask.frame, "ref": ref(partial(self.settle, ask))}
        if self.link is Link.ATTACHED and not self.watching:
            self.link = Link.AWAY
            yield {"type": "unsubscribe", "job_id": self.job_id}
        elif self.link is Link.ATTACHED and self._taken is not None and window_max:
            # Forgotten before the send, which may wait while more is taken.
            cursor, self._taken = self._taken, None
            yield {"type": "ack", "job_id": self.job_id, "cursor": cursor}

    def take_asks(self) -> Iterator[Ask]:
        """What is to be asked now; it counts as sent."""
        for ask in [ask for ask in self._asks if not (ask.sent or self.over)]:
            ask.sent = True
            yield ask

    # ---- from the worker ---------------------------------------------------------------------------------------------

    def answered(self, answer: Frame) -> None:
        """The worker has answered the request to create or to follow the job."""
        if answer["type"] == "error":
            return self._refused(Refused.of(answer["error"]))
        self.link = Link.ATTACHED
        self._retry.clear()
        self.accepted = answer
        if answer.get("reset"):
            self.reset()
        if answer.get("over"):
            self.nothing_follows()
        self.changed.set()
        return self._notify()

    def settle(self, ask: Ask, answer: Frame) -> None:
        """The worker has answered another request."""
        ask.answer = answer
        self._asks.remove(ask)
        self.changed.set()

    def receive(self, event: Token | Narration | End) -> None:
        """Take in an event, unless it was on its way since before an unsubscribe: then it comes again."""
        if self.link is not Link.ATTACHED:
            return
        self.received = event.cursor
        self.ended = isinstance(event, End)
        self._push(event)
        if self.watching and self._unread.cost_bytes > self._unread_bytes_max and not self.ended:
            self.watching = False
            self._notify()

    def reset(self) -> None:
        """The worker tells the job again from its start."""
        self._drop_unread()
        self.received = None
        self._push(Reset(self.job_id))

    def nothing_follows(self) -> None:
        """The cursor is at the end already."""
        self.ended = True
        self.changed.set()

    def fail(self, error: JobwireError) -> None:
        """The job cannot be followed any more."""
        self.failure = self.failure or error
        self.changed.set()

    def detach(self) -> None:
        """The connection is gone."""
        self.link = Link.AWAY
        for ask in self._asks:
            ask.sent = False

    def _refused(self, refusal: Refused) -> None:
        """A job that was accepted before and is refused for now, waits; any other refusal is final."""
        self.link = Link.WAITING
        if self.accepted is None or refusal.retry_after_ms is None:
            return self.fail(refusal)
        try:
            delay_s = self._retry.delay_s(refusal, refusal.retry_after_ms / 1000)
        except JobwireError as error:
            return self.fail(error)
        asyncio.get_running_loop().call_later(delay_s, self._ask_again)
        return None

    def _ask_again(self) -> None:
        if self.link is Link.WAITING:
            self.link = Link.AWAY
            self._notify()

    def _push(self, event: Event) -> None:
        if not self.closed:
            self._unread.push(event)
        self.changed.set()

    def _drop_unread(self) -> None:
        self._unread.clear()
        self._taken = None


class Subscriptions(dict[str, Subscription]):
    """Those that are not over, by job id."""

    def forget_if_over(self, subscription: Subscription) -> None:
        if subscription.over and self.get(subscription.job_id) is subscription:
            del self[subscription.job_id]
