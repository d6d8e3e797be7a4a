"""What the tests are made of: frames, scripts that many of them share, and a loop that ends in time."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

from jobwire_client import Event, Job
from scripted import LIMITS, Exchange, Frame, HttpScript, Peer, Script

P = ParamSpec("P")
QUICK: dict[str, Any] = {"backoff_s": (0.001, 0.01)}
ID = "job-0123456789abcdef"
OTHER = "second-job-012345"
HELLO: Frame = {"type": "hello", "protocol": "jobwire.v1", "limits": LIMITS}
GOAWAY: Frame = {"type": "goaway", "reason": "draining", "retry_ms": 1}
HEARTBEAT = b": hb\n\n"
TEST_S_MAX = 20.0


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test in a loop of its own, for at most 20 seconds."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TEST_S_MAX):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


async def events_of(job: Job) -> list[Event]:
    return [event async for event in job]


# ---- frames ----------------------------------------------------------------------------------------------------------


def token(at: int, text: str, job_id: str = ID, **more: Any) -> Frame:
    return {"type": "token", "job_id": job_id, "cursor": f"e-{at}", "text": text, **more}


def end(at: int, status: str = "completed", job_id: str = ID, **more: Any) -> Frame:
    return {"type": "end", "job_id": job_id, "cursor": f"e-{at}", "status": status, "usage": {}, **more}


def sse(*frames: Frame, newline: str = "\n") -> bytes:
    """Encode frames as the worker does: unnamed events, the cursor as id."""
    lines = (
        (f"id: {frame['cursor']}{newline}" if "cursor" in frame else "")
        + f"data: {json.dumps(frame, ensure_ascii=False)}{newline}{newline}"
        for frame in frames
    )
    return "".join(lines).encode()


# ---- scripts for a WebSocket -----------------------------------------------------------------------------------------


async def silent(peer: Peer) -> None:
    """Say nothing after the hello."""
    await peer.wait_closed()


def serves(*frames: Frame) -> Script:
    """Return a script that accepts a job and sends these frames."""

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(*frames)
        await peer.wait_closed()

    return script


def cut_after(*frames: Frame) -> Script:
    """Return a script that accepts a job, sends these frames and is cut."""

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(*frames)
        await peer.cut()

    return script


async def go_on_after_a(peer: Peer) -> None:
    """Resume the job of a client that has received "a": send the rest, and the end."""
    assert (await peer.accept())["after"] == "e-1"
    await peer.send(token(2, "b"), end(3))
    await peer.wait_closed()


# ---- scripts for HTTP ------------------------------------------------------------------------------------------------


async def created(exchange: Exchange) -> None:
    """Accept a POST."""
    assert (exchange.method, exchange.path) == ("POST", "/v1/jobs")
    job_id = exchange.body["job_id"]
    sse_url = f"/v1/jobs/{job_id}/stream?ticket=t"
    await exchange.answer_json(200, {"job_id": job_id, "sse_url": sse_url, "state": "queued"})


def streams(*pieces: bytes) -> HttpScript:
    """Return a script that streams pieces and then cuts."""

    async def script(exchange: Exchange) -> None:
        await exchange.stream(*pieces)

    return script


def answers(status: int, code: str | None = None, **headers: str) -> HttpScript:
    """Return a script that answers with a problem."""

    async def script(exchange: Exchange) -> None:
        if code is None:
            await exchange.answer(status, b"" if status == 204 else b"<h1>Proxy</h1>", **headers)
        else:
            await exchange.answer_json(status, {"code": code, "status": status, "detail": f"No: {code}"}, **headers)

    return script
