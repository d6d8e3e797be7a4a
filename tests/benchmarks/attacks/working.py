"""Jobs, as fast as they are taken, and readers that do not read."""

from __future__ import annotations

import itertools
import socket
import time
import uuid
from collections.abc import Callable, Iterator

from tests.benchmarks.attacks.wire import (
    ATTACKER,
    KEYED,
    READ_BYTES,
    SMALL_BUFFER_BYTES,
    flood,
    frame,
    greet,
    http,
    post,
    request,
    wait_for_end,
    websocket,
)

FRAMES_AT_ONCE = 500
LISTED_JOBS = 30_000
RESUBSCRIBES_PER_S = 1000
UNREAD_JOBS = 4
LONG = {"prompt": "Tell me a story.", "max_tokens": 1900, "ignore_eos": True}
UNREAD = {**LONG, "logprobs": 20}


def status_jobs(port: int) -> None:
    """Ask for the worker's status in jobs."""
    flood(port, _created(operation="status"))


def worker_checks(port: int) -> None:
    """Ask for checks of the worker in jobs."""
    flood(port, _created(operation="worker_check"))


def status_jobs_over_http(port: int) -> None:
    """POST jobs that ask for the worker's status."""
    flood(port, http(then=post({"operation": "status"}) * 100))


def short_jobs(port: int) -> None:
    """Create jobs of one token."""
    flood(port, _created(prompt="x", max_tokens=1))


def _created(**fields: object) -> Callable[[socket.socket], None]:
    many = frame("create", **fields) * FRAMES_AT_ONCE
    return websocket(lambda: itertools.repeat(many))


def created_and_cancelled(port: int) -> None:
    """Create jobs, and cancel each at once."""

    def parts() -> Iterator[bytes]:
        run = uuid.uuid4().hex[:8]
        for number in itertools.count():
            ids = [f"{run}-{50 * number + place}" for place in range(50)]
            yield b"".join(
                frame("create", job_id=job_id, prompt="x", detach=True) + frame("cancel", job_id=job_id)
                for job_id in ids
            )

    flood(port, websocket(parts))


def many_ended_jobs(port: int) -> None:
    """Create 30,000 jobs that end at once, as far as they are taken."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        greet(plain)
        many, tail = frame("create", operation="status", channels=[]) * 100, b""
        for number in range(LISTED_JOBS // 100):
            plain.sendall(many + frame("ping", ref=f"ping {number}"))
            while b'"ref":"ping %d"' % number not in tail:
                data = plain.recv(READ_BYTES)
                assert data, "the worker closed the connection"
                tail = tail[-100:] + data


def listed_jobs(port: int) -> None:
    """List 30,000 jobs."""
    flood(port, http(then=request("GET /v1/jobs", KEYED) * 10))


def resubscribes(port: int) -> None:
    """Subscribe to a job and leave it again, 1,000 times per second."""
    job_id = uuid.uuid4().hex
    pair = frame("subscribe", job_id=job_id) + frame("unsubscribe", job_id=job_id)

    def parts() -> Iterator[bytes]:
        yield frame("create", job_id=job_id, **LONG, detach=True)
        while True:
            yield pair * (RESUBSCRIBES_PER_S // 40)
            time.sleep(0.1)

    flood(port, websocket(parts))


def resubscribes_at_once(port: int) -> None:
    """Subscribe to an ended job, as fast as it goes."""
    job_id = uuid.uuid4().hex
    again = frame("subscribe", job_id=job_id) * FRAMES_AT_ONCE
    first = frame("create", job_id=job_id, prompt="Tell me a story.", max_tokens=200)
    flood(port, websocket(lambda: itertools.repeat(again), first=first))


def unread_subscriptions(port: int) -> None:
    """Subscribe to a job and leave it, over and over, and read nothing."""
    job_id = uuid.uuid4().hex
    many = (frame("subscribe", job_id=job_id) + frame("unsubscribe", job_id=job_id)) * FRAMES_AT_ONCE

    def conduct(plain: socket.socket) -> None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        greet(plain)
        plain.sendall(frame("create", job_id=job_id, **LONG, detach=True))
        while True:
            plain.sendall(many)

    flood(port, conduct)


def acknowledgements(port: int) -> None:
    """Acknowledge frames that were never sent."""
    _about_a_job(port, "ack", cursor="zzzz-1")


def priorities(port: int) -> None:
    """Change the priority of a job, over and over."""
    _about_a_job(port, "update", priority=5)


def slow_subscriptions(port: int) -> None:
    """Follow a job in a window of one frame, over and over."""
    _about_a_job(port, "subscribe", window=1, coalesce_ms=500)


def _about_a_job(port: int, kind: str, **fields: object) -> None:
    job_id = uuid.uuid4().hex
    many = frame(kind, job_id=job_id, **fields) * FRAMES_AT_ONCE
    flood(port, websocket(lambda: itertools.repeat(many), first=frame("create", job_id=job_id, **LONG, detach=True)))


def renewals(port: int) -> None:
    """Show the key again, over and over."""
    many = frame("auth", token=ATTACKER) * FRAMES_AT_ONCE
    flood(port, websocket(lambda: itertools.repeat(many)))


def unread_websockets(port: int) -> None:
    """Create jobs with twenty alternatives per token, and read nothing."""
    asked = frame("create", **UNREAD) * UNREAD_JOBS

    def conduct(plain: socket.socket) -> None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        greet(plain)
        plain.sendall(asked)
        wait_for_end(plain)

    flood(port, conduct)


def unread_streams(port: int) -> None:
    """POST jobs with twenty alternatives per token for their streams, and read nothing."""

    def conduct(plain: socket.socket) -> None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        plain.sendall(post(UNREAD, "Accept: text/event-stream"))
        wait_for_end(plain)

    flood(port, conduct)


def unread_answers(port: int) -> None:
    """Send JSON pings, and read no answer."""
    many = frame("ping", t="x" * 200) * FRAMES_AT_ONCE

    def conduct(plain: socket.socket) -> None:
        greet(plain)
        while True:
            plain.sendall(many)

    flood(port, conduct)


def refs(port: int) -> None:
    """Send frames that are refused, with long refs."""
    many = frame("cancel", job_id="x" * 20, ref="r" * 256) * FRAMES_AT_ONCE
    flood(port, websocket(lambda: itertools.repeat(many)))


CASES = (
    status_jobs,
    worker_checks,
    status_jobs_over_http,
    short_jobs,
    created_and_cancelled,
    listed_jobs,
    resubscribes,
    resubscribes_at_once,
    unread_subscriptions,
    acknowledgements,
    priorities,
    slow_subscriptions,
    renewals,
    unread_websockets,
    unread_streams,
    unread_answers,
    refs,
)
PREPARATIONS = {listed_jobs: many_ended_jobs}
