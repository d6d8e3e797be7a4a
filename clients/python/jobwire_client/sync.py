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

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields of the request that the worker does not know, misspelt ones perhaps. Empty before it has accepted."""
        return self._job.ignored

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


def connect_sync(url: str, token: KeySource = None, **options: Unpack[Options]) -> SyncClient:
    """Return the same client for programs without asyncio, to be used with `with`."""
    return SyncClient(Client(url, token, options))
