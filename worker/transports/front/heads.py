"""What is wrong with the head of a request that h11 takes, and the answer to it. Pure.

RFC 9112 leaves a server little choice in these cases, and none of them comes from a client that means well: a proxy
may read Content-Length beside Transfer-Encoding, or control characters in values, in another way than we do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

import msgspec

Headers = Iterable[tuple[bytes, bytes]]

LENGTH, ENCODING = b"content-length", b"transfer-encoding"
CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
NOT_LATIN_1 = re.compile(rb"[\x80-\x9f]")
"""Bytes that mean nothing in Latin-1, which is how values are read. UTF-8 has them in most letters."""

FREE_NAMES = (b"cookie",)
"""Headers whose values may be in any encoding: a browser sends the cookies of all programs on the same host."""

ASCII_NAMES = (b"connection", b"upgrade")
"""Headers of a handshake that are read as words, as are all that begin with `sec-websocket-`."""


def fault(headers: Headers) -> str | None:
    """Return what is wrong with the headers of a request, whose names are in lower case; None if nothing is."""
    names = dict(headers)
    if LENGTH in names and ENCODING in names:
        return "The request has both Content-Length and Transfer-Encoding. Send one of them."
    if b"sec-websocket-key" in names and (ENCODING in names or names.get(LENGTH, b"0") != b"0"):
        return "The handshake of a WebSocket has no body. Send nothing before it is answered."
    for name, value in headers:
        if CONTROLS.search(value) or (name not in FREE_NAMES and NOT_LATIN_1.search(value)):
            return f"The header {_shown(name)} has characters that are not printable Latin-1."
        if (name in ASCII_NAMES or name.startswith(b"sec-websocket-")) and not value.isascii():
            return f"The header {_shown(name)} has characters that are not ASCII."
    return None


def _shown(name: bytes) -> str:
    return name[:100].decode("ascii")


def problem(status: int, detail: str) -> bytes:
    """Return a refusal as a problem object (RFC 9457)."""
    title = HTTPStatus(status).phrase
    code = title.lower().replace(" ", "_")
    fields = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return msgspec.json.encode({**fields, "code": code, "retriable": False})
