"""Heartbeats: reports to a coordinator at a steady pace that this worker lives, in the form of older workers.

A heartbeat is a POST of `{"worker_id", "timestamp", "health_status"}` to `{queen_url}/v1/worker-heartbeat`. A
coordinator that is away, slow or broken costs the worker one warning and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

HealthStatus: TypeAlias = Literal["healthy", "degraded"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Heartbeats:
    """Posts a heartbeat now and after every `every_s` seconds. The clock and the sleep come from the owner.

    `health` is called before each heartbeat. `now` returns an aware time. `timeout_s` bounds one post.
    """

    queen_url: str
    worker_id: str
    every_s: float
    health: Callable[[], HealthStatus]
    now: Callable[[], datetime]
    sleep: Callable[[float], Awaitable[None]]
    timeout_s: float = 5.0

    async def run(self) -> None:
        """Post until cancelled. Logs once that the coordinator does not answer, and once that it does again."""
        url = self.queen_url.rstrip("/") + "/v1/worker-heartbeat"
        failing = False
        while True:
            try:
                await post_json(url, self.body(), timeout_s=self.timeout_s)
            except (OSError, ValueError) as error:
                if not failing:
                    logger.warning("heartbeats do not reach %s: %s", url, str(error) or type(error).__name__)
                failing = True
            else:
                if failing:
                    logger.info("heartbeats reach %s again", url)
                failing = False
            await self.sleep(self.every_s)

    def body(self) -> bytes:
        """Return the next heartbeat as JSON."""
        beat = {"worker_id": self.worker_id, "timestamp": self.now().isoformat(), "health_status": self.health()}
        return msgspec.json.encode(beat)


async def post_json(url: str, body: bytes, *, timeout_s: float) -> None:
    """POST `body` to an http or https URL and wait for the head of the answer, `timeout_s` at most.

    Raises OSError (TimeoutError is one) when the other side cannot be reached, ValueError when the URL is no such URL
    or the answer is not a success.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is not an http or https URL")
    secure = parts.scheme == "https"
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if secure else 80), ssl=secure or None
        )
        try:
            writer.write(head.encode("ascii") + body)
            await writer.drain()
            status = await reader.readline()
        finally:
            writer.close()
    match status.split():
        case [version, code, *_] if version.startswith(b"HTTP/1.") and code.startswith(b"2"):
            return
    raise ValueError(f"the answer was {status.strip().decode('ascii', 'replace') or 'empty'}")
