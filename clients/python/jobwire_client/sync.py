"""The same client without asyncio, for any number of threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ParamSpec, Self, TypeVar, Unpack

from .client import Client
from .errors import ConnectionFailed
from .events import End, Event
from .job import Job
from .options import KeySource, Options, Params, Prompt

P = ParamSpec("P")
T = TypeVar("T")


class SyncJob:
    """A job for programs without asyncio: iterate, or call `text()`, or first one and then the other.

    Any number of threads may call the methods at once. Interrupting a wait (Ctrl-C) is safe: no event is lost, and the
    same call may be made again. Each method raises the errors of the method of `Job` with its name.
    """

    def __init__(self, job: Job, client: SyncClient) -> None:
        self.id = job.id
        self._job = job
        self._wait = client.wait

    @property
    def cursor(self) -> str | None:
        """The position of the reader: `subscribe(id, after=cursor)` continues from it, in any client."""
        return self._job.cursor

    @property
    def end(self) -> End | None:
        """The last event, once it is read."""
        return self._job.end

    @property
    def accepted(self) -> Mapping[str, Any]:
        """The worker's latest answer: state, queue, sse_url. Empty before the first one."""
        return self._job.accepted

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields of the request that the worker does not know, misspelt ones perhaps. Empty before it has accepted."""
        return self._job.ignored

    def __enter__(self) -> Self:
        """Return the job; leaving the block calls `close()`."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """Wait for the next event and return it. When several threads iterate at once, each event goes to one of them.

        Raises JobFailed in place of an End that is failed or expired, Refused, and ConnectionFailed.
        """
        try:
            return self._wait(self._job.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def text(self, index: int = 0) -> str:
        """Wait for the end and return the whole text of a choice, including the text that was read before.

        Raises JobCancelled if the job was cancelled, and the errors of iterating.
        """
        return self._wait(self._job.text, index)

    def texts(self) -> list[str]:
        """Wait for the end and return the whole text of each choice, for a job with `n`. Raises like `text`."""
        return self._wait(self._job.texts)

    def cancel(self) -> None:
        """Ask the worker to cancel the job and wait for its answer; an End follows. A job that has ended is success.

        Raises Refused, and ConnectionFailed. Interrupting the wait does not take the request back.
        """
        self._wait(self._job.cancel)

    def update(self, *, priority: int) -> Mapping[str, Any]:
        """Change the priority of a queued job (0 to 9, higher first) and return the worker's answer.

        Raises Refused (over SSE always), and ConnectionFailed. Interrupting the wait does not take the request back.
        """
        return self._wait(self._job.update, priority=priority)

    def close(self) -> None:
        """Stop watching the job, which continues at the worker. Calling it again does nothing."""
        self._wait(self._job.aclose)


class SyncClient:
    """A client for programs without asyncio, for any number of threads. Returned by `connect_sync`, used with `with`.

    It runs a `Client` in a thread of its own. Interrupting a wait (Ctrl-C) is safe: no text is lost.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._lock = threading.Lock()
        self._open = False

    @property
    def transport(self) -> str:
        """The current transport: "websocket" or "sse"."""
        return self._client.transport

    @property
    def hello(self) -> Mapping[str, Any]:
        """The worker's hello: its version and its limits. Empty over SSE."""
        return self._client.hello

    def __enter__(self) -> Self:
        """Start the thread, connect, and return the client.

        Raises ConnectionFailed at once if there is no connection; only later cuts are retried. A failed or interrupted
        attempt leaves no thread.
        """
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
        """End all waits for jobs with ConnectionFailed, then close the connection and the thread.

        Jobs continue at the worker. Any thread may call this, and calling it again does nothing.
        """
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
        """Start a job and return it at once, before the worker has answered. A refusal is raised to the job's reader.

        Raises ConnectionFailed if the client is closed, and ValueError if it watches this job already.
        """
        return self._job(lambda: self._client.run(prompt, job_id=job_id, after=after, **params))

    def create(
        self, prompt: Prompt, *, job_id: str | None = None, after: str | None = None, **params: Unpack[Params]
    ) -> SyncJob:
        """Start a job like `run`, wait until the worker has accepted it, and return it.

        Raises Refused with the worker's code, and the errors of `run`. If the wait is interrupted the job may run.
        """
        return SyncJob(self.wait(self._client.create, prompt, job_id=job_id, after=after, **params), self)

    def subscribe(
        self,
        job_id: str,
        *,
        after: str | None = None,
        channels: Sequence[str] | None = None,
        window: int | None = None,
    ) -> SyncJob:
        """Watch a job that was created elsewhere, from its start or after a cursor, and return it at once.

        Raises the errors of `run`. A job that the worker does not know is Refused, which is raised to the reader.
        """
        return self._job(lambda: self._client.subscribe(job_id, after=after, channels=channels, window=window))

    def wait(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call an async function of the client in its thread and wait. Raises ConnectionFailed if it is closed."""
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


def connect_sync(url: str, token: KeySource = None, **options: Unpack[Options]) -> SyncClient:
    """Return a client like that of `connect` for programs without asyncio, to be used with `with`."""
    return SyncClient(Client(url, token, options))
