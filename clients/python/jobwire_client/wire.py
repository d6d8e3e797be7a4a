"""What WebSocket and HTTP share: JSON, and errors in HTTP responses."""

from __future__ import annotations

import json

from .errors import Cut, Refused
from .events import Frame

HEARTBEAT_S = 15.0
"""The worker's default, until its hello states another one."""

CONNECT_TIMEOUT_S = 10.0

WITHOUT_WORKER = (429, 502, 503, 504)
"""Statuses that a proxy returns while the worker restarts."""


def parse(message: str | bytes) -> Frame:
    """Parse a message. Raises Cut for anything but a JSON object."""
    try:
        frame = json.loads(message)
    except ValueError as error:
        raise Cut("The worker sent something that is not JSON") from error
    if not isinstance(frame, dict):
        raise Cut("The worker sent JSON that is not an object")
    return frame


def refusal_of(status: int, retry_after: str, body: bytes | bytearray | None) -> Refused | Cut:
    """Return the error in an HTTP response: the worker's own, or a Cut if a proxy has no worker for now."""
    try:
        problem = json.loads(body or b"")
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        return Refused.of(problem)
    if status in WITHOUT_WORKER:
        return Cut(f"HTTP status {status}", float(retry_after) if retry_after.isdecimal() else 1.0)
    return Refused.of({"code": f"http_{status}", "detail": f"HTTP status {status}", "status": status})
