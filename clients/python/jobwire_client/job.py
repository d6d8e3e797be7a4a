"""A job, for its reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from .errors import JobCancelled, JobFailed, Refused
from .events import End, Event, Frame, Reset, Token
from .subscription import Subscription


class Job:
    """The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.

    `cursor` is where the reader is: give it to `subscribe(id, after=cursor)`, anywhere, to go on from there.
    Leaving a loop early leaves the job as it is: iterate again, `cancel()` it, or `aclose()` to stop watching it.
    """

    def __init__(self, subscription: Subscription) -> None:
        self.id = subscription.job_id
        self.cursor = subscription.received
        self.end: End | None = None
        self._subscription = subscription
        self._done = False
        self._texts: dict[int, list[str]] = {}  # by choice

    @property
    def accepted(self) -> Mapping[str, Any]:
        """The worker's latest answer: state, queue, sse_url. Empty before it."""
        return self._subscription.accepted or {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields of the request that the worker does not know, misspelt ones perhaps. Empty before it has accepted."""
        return tuple(self.accepted.get("ignored", ()))

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
        await self._ask(type="cancel")

    async def update(self, *, priority: int) -> Mapping[str, Any]:
        """Change the priority of a job that waits (0 to 9, higher first); return the answer, with its `state`.

        Narration tells its new place in the queue. Nothing happens to a job that has ended. Raises Refused, over SSE
        always: it has no such request.
        """
        return await self._ask(type="update", priority=priority) or self.accepted

    async def aclose(self) -> None:
        """Stop watching the job, which goes on."""
        self._done = True
        self._subscription.close()

    async def _ask(self, **frame: Any) -> Frame:
        """Ask the worker and return its answer, or nothing when the job has ended."""
        if self._subscription.ended:
            return {}
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
