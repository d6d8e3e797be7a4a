"""Reads the body of the current request, or what is left of it."""

from __future__ import annotations

import asyncio
from typing import Any

from quart import g, has_request_context, request
from werkzeug.exceptions import RequestTimeout

from worker.errors import FrameTooLarge, UnsupportedMediaType
from worker.protocol import decoding

BODY_TIMEOUT_S = 60.0
"""How long a client may take to send a body."""

DISCARD_BYTES_MAX = 64 << 20
"""How much of a refused body is still read. Otherwise the connection is reset before the client sees the answer."""

DISCARD_TIMEOUT_S = 2.0


async def read_object(bytes_max: int) -> dict[str, Any]:
    """Return the JSON object in the body, and remember it in `g.body` for the answer to a refusal.

    The limit is ours: Quart's answer to a large body does not reach the client. Raises UnsupportedMediaType,
    FrameTooLarge, BadFrame, RequestTimeout.
    """
    if not request.is_json:
        raise UnsupportedMediaType("Send the body as JSON, with the header `Content-Type: application/json`.")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.body:
                data += part
                if len(data) > bytes_max:
                    raise FrameTooLarge(f"The body may have at most {bytes_max} bytes.")
    except TimeoutError:
        raise RequestTimeout from None
    g.body = decoding.load(bytes(data), bytes_max)
    return g.body  # type: ignore[no-any-return]  # Quart's `g` has no types


async def discard() -> None:
    """Read the rest of a refused request, up to a bound."""
    if not has_request_context():
        # A WebSocket at an unknown path has no body.
        return
    size = 0
    try:
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            async for part in request.body:
                size += len(part)
                if size > DISCARD_BYTES_MAX:
                    return
    except TimeoutError:
        return
