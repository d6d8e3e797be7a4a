"""Client for Jobwire: create a job, read its text while it is generated, cancel it, and survive every cut.

::

    async with connect("http://127.0.0.1:8080") as jw:
        async for event in jw.run("Tell me a story about a fox", max_tokens=200):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

    with connect_sync("http://127.0.0.1:8080") as jw:  # without asyncio, for any number of threads
        print(jw.run("Tell me a story about a fox").text())

One WebSocket carries any number of jobs. Where a proxy lets no WebSocket through, each job is an event stream over
HTTP. After a cut the client reconnects and repeats its request with the cursor of the last event it received: no text
is lost or doubled.

Backpressure: no job ever blocks another one on its connection. Unread events of a job are kept in the client, and
unread tokens are merged. A job with more than `unread_bytes_max` unread is paused (unsubscribed, or its stream is not
read) until its reader comes back: the worker keeps its log. Nothing is dropped and memory is bounded. With `window` the
worker itself waits: at most that many frames of a job are in flight or unread. The worker cancels a job that nobody has
followed for its `orphan_ttl_s`, unless the job was created with `detach=True`.

Errors::

    JobwireError             has `code`, `detail`, `status`, `retry_after_ms`, `problem`
     +-- Refused             the worker refused a request
     +-- JobFailed           the job ended as failed or expired
     +-- JobCancelled        the whole text was requested, but the job was cancelled
     +-- ConnectionFailed    given up: a wrong key, no answer for `retry_timeout_s`, or closed by the program

The modules, in the order in which to read them::

    events errors options        the words of the client's users
    subscription unread          one job without I/O: what to send, what its frames mean, its unread events
    job                          the same job for its reader
    retry wire                   pauses between attempts; JSON and HTTP errors
    connection websocket         all jobs over one WebSocket, and over its successor
    sse                          each job over HTTP
    client sync                  the jobs of one program, with asyncio and without
"""

from __future__ import annotations

from .client import Client, connect
from .errors import ConnectionFailed, JobCancelled, JobFailed, JobwireError, Refused
from .events import End, Event, LikelyToken, Narration, Reset, Token, Usage
from .job import Job
from .options import Options, Params
from .sync import SyncClient, SyncJob, connect_sync

__all__ = [
    "Client", "ConnectionFailed", "End", "Event", "Job", "JobCancelled", "JobFailed", "JobwireError", "LikelyToken",
    "Narration", "Options", "Params", "Refused", "Reset", "SyncClient", "SyncJob", "Token", "Usage", "connect",
    "connect_sync",
]  # fmt: skip
