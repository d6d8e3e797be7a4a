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

How it is made, in the order in which to read it::

    events errors options        what a program sees and says
    subscription unread          one job without I/O: what to send for it, what its frames mean, what waits
    job                          the same, for its reader
    retry wire                   pauses between attempts; JSON and HTTP errors
    connection websocket         all jobs over one WebSocket, and over the next one
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
