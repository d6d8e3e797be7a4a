"""Reads the body of the current request, or refuses it."""

from __future__ import annotations

import asyncio
from typing import Any

import quart
from quart import g, request
from quart.wrappers.request import Body
from werkzeug.exceptions import RequestTimeout

from worker.config import Settings
from worker.errors import FrameTooLarge, UnsupportedMediaType, shortened
from worker.protocol import decoding
from worker.transports.routes.intake import METHODS_WITH_BODY, NEEDLESS_BYTES_MAX
from worker.transports.wake import Wake

BODY_TIMEOUT_S = 60.0
"""How long a client may take to send a body."""


class SmallBody(Body):
    """The body of a request as Quart receives it. Its events are small: every stream keeps them until it ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._complete = Wake()  # type: ignore[assignment]  # it has the methods
        self._has_data = Wake()  # type: ignore[assignment]


class Request(quart.Request):
    """A request with such a body."""

    body_class = SmallBody  # type: ignore[assignment]  # Quart types it as its own class, not as a subclass


async def refuse_needless() -> None:
    """Refuse a large body where none has a meaning. A small one is dropped. Raises FrameTooLarge."""
    if request.method not in METHODS_WITH_BODY and (request.content_length or 0) > NEEDLESS_BYTES_MAX:
        raise FrameTooLarge(f"A request with {shortened(request.method)} needs no body. Send it without one.")


async def read_object(settings: Settings) -> dict[str, Any]:
    """Return the JSON object in the body, and remember it in `g.body` for the answer to a refusal.

    Raises UnsupportedMediaType, FrameTooLarge, BadFrame, RequestTimeout.
    """
    _check_headers(settings.frame_bytes_max)
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.body:
                data += part
                if len(data) > settings.frame_bytes_max:
                    raise _too_large(settings.frame_bytes_max)
    except TimeoutError:
        raise RequestTimeout from None
    g.body = decoding.load(bytes(data), settings.frame_bytes_max, settings.json_members_max)
    return g.body  # type: ignore[no-any-return]  # Quart's `g` has no types


def _check_headers(bytes_max: int) -> None:
    """Refuse a body that would be of no use, before it is sent."""
    if not request.is_json:
        raise UnsupportedMediaType("Send the body as JSON, with the header `Content-Type: application/json`.")
    codings = [coding.strip() for field in request.headers.getlist("Content-Encoding") for coding in field.split(",")]
    named = [coding for coding in codings if coding and coding.lower() != "identity"]
    if named:
        raise UnsupportedMediaType(
            f"The body has the Content-Encoding {shortened(', '.join(named))!r}. Send it as it is, without one."
        )
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)


def _too_large(bytes_max: int) -> FrameTooLarge:
    return FrameTooLarge(f"The body may have at most {bytes_max} bytes.")
