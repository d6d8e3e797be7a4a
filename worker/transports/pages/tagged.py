"""Answers that a browser may cache: with a tag of their content, and 304 if it is unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from quart import Response, request


def tag_of(content: bytes) -> str:
    """Return a tag that differs whenever the content does."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def answer(content: bytes, tag: str, content_type: str, headers: Mapping[str, str]) -> Response:
    """Answer the current request with a content, or with 304 if the client's copy is current."""
    known = request.if_none_match.contains_weak(tag)
    response = Response(b"" if known else content, 304 if known else 200, dict(headers), content_type=content_type)
    response.set_etag(tag)
    if known:
        # It would have to be the length of the content, which is not sent.
        del response.headers["Content-Length"]
    return response
