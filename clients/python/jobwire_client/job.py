"""A job, for its reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from .errors import JobCancelled, JobFailed, Refused
from .events import End, Event, Frame, Reset, Token
from .subscription import Subscription


class Job:
    """The events of one job in order, for one reader: iterate, or await `text()`, or first one and then the other.

    `cursor` is the position of the reader: `subscribe(id, after=cursor)` continues from it, in any client. Leaving a
    loop early changes nothing: iterate again, `cancel()` the job, or `aclose()` to stop watching it.

    Cancelling any of the waits below is safe: no event is lost, and the same call may be made again. Any number of
    tasks of the client's event loop may call the methods at once. A job is not thread-safe: see `connect_sync`.
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
        """The worker's latest answer: state, queue, sse_url. Empty before the first one."""
        return self._subscription.accepted or {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields of the request that the worker does not know, misspelt ones perhaps. Empty before it has accepted."""
        return tuple(self.accepted.get("ignored", ()))

    async def wait_accepted(self) -> Self:
        """Wait until the worker has accepted the job, and return the job.

        Raises Refused with the worker's code, and ConnectionFailed. Cancelling the wait leaves the job as it is.
        """
        await self._wait_until(lambda: self._subscription.accepted is not None)
        return self

    async def __aenter__(self) -> Self:
        """Return the job; leaving the block calls `aclose()`."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event and return it.

        Raises JobFailed in place of an End that is failed or expired, Refused, and ConnectionFailed. Cancelling the
        wait is safe: the next call returns the same event. When several tasks iterate at once, each event goes to one
        of them.
        """
        if not self._done:
            await self._wait_until(lambda: self._subscription.has_news)
        event = None if self._done else self._subscription.pop()
        if event is None:
            self._done = True
            raise StopAsyncIteration
        self._fold(event)
        self._check_end()
        return event

    async def text(self, index: int = 0) -> str:
        """Wait for the end and return the whole text of a choice, including the text that was read before.

        Raises JobCancelled if the job was cancelled, and the errors of iterating. Cancelling the wait is safe: the text
        so far is kept, and another call goes on. Any number of tasks may wait at once, and each gets the whole text.
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
        """Wait for the end and return the whole text of each choice, for a job with `n`.

        Raises the errors of `text`; cancelling the wait and waiting in several tasks are as safe.
        """
        first = await self.text()
        count = max(self._subscription.request.get("n") or 1, *(index + 1 for index in self._texts), 1)
        return [first, *[await self.text(index) for index in range(1, count)]]

    async def cancel(self) -> None:
        """Ask the worker to cancel the job and wait for its answer; an End follows. A job that has ended is success.

        Raises Refused, and ConnectionFailed. Cancelling the wait does not take the request back. Several tasks may
        cancel one job at once.
        """
        await self._ask(type="cancel")

    async def update(self, *, priority: int) -> Mapping[str, Any]:
        """Change the priority of a queued job (0 to 9, higher first) and return the worker's answer, with its `state`.

        Narration reports the new place in the queue. A job that has ended is left as it is. Raises Refused (over SSE
        always, which has no such request), and ConnectionFailed. Cancelling the wait does not take the request back.
        When several tasks call this at once, the last request wins.
        """
        return await self._ask(type="update", priority=priority) or self.accepted

    async def aclose(self) -> None:
        """Stop watching the job, which continues at the worker.

        Never waits and never raises; calling it again does nothing. Tasks that wait for events get the end of
        iteration.
        """
        self._done = True
        self._subscription.close()

    async def _ask(self, **frame: Any) -> Frame:
        """Send a request and return the worker's answer, empty if the job has ended."""
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

    async def _wait_until(self, is_met: Callable[[], bool]) -> None:
        changed = self._subscription.changed
        while not is_met():
            if self._subscription.failure is not None:
                raise self._subscription.failure
            changed.clear()
            await changed.wait()
