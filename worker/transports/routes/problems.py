"""Turns every error of a request into a problem object, in the dialect that the client speaks, and counts it."""

from __future__ import annotations

import logging
import re
from collections import Counter

from quart import Quart, Response, g, has_request_context, request
from werkzeug.exceptions import HTTPException

from worker.dialects.legacy import problems as legacy
from worker.errors import JobwireError, shortened
from worker.protocol import frames
from worker.transports.routes.legacy import PROBLEM, is_legacy

DETAILS = {
    404: "There is nothing at this path. {prefix}/docs lists all paths.",
    405: "This path does not support this method. {prefix}/docs lists the methods of each path.",
}
"""Replaces the framework's own sentences, which are written for readers of pages."""

logger = logging.getLogger(__name__)


class Problems:
    """The error handlers of the application. `refusals` counts errors by code. Answers have `bytes_max` at most."""

    def __init__(self, refusals: Counter[str], bytes_max: int) -> None:
        self._refusals = refusals
        self._bytes_max = bytes_max

    def install(self, app: Quart) -> None:
        """Register the handlers with an application."""
        app.register_error_handler(JobwireError, self._on_error)
        app.register_error_handler(HTTPException, self._on_http_exception)
        app.register_error_handler(Exception, self._on_bug)

    async def _on_error(self, error: JobwireError) -> Response:
        """Answer an error of our tree."""
        return self._problem(error)

    async def _on_http_exception(self, error: HTTPException) -> Response:
        """Answer a refusal of Quart (unknown path, wrong method, slow body), with a problem object too."""
        status, code = error.code or 500, re.sub(r"\W+", "_", error.name.lower())
        prefix = request.root_path if has_request_context() else ""
        detail = DETAILS.get(status, "").format(prefix=prefix) or error.description or error.name
        fields = {
            "type": "about:blank",
            "title": error.name,
            "status": status,
            "detail": detail,
            "code": code,
            "retriable": status in (408, 503),
        }
        self._count(code, status)
        headers = {name: value for name, value in error.get_headers() if name == "Allow"}
        return _answer(frames.encode(fields), status, headers)

    async def _on_bug(self, error: Exception) -> Response:
        """Log a bug of ours, and tell the client no details."""
        about = {"method": request.method, "path": request.path}
        logger.exception("error while answering", exc_info=error, extra=about)
        return self._problem(JobwireError("Something went wrong in the worker. The error was logged."))

    def _count(self, code: str, status: int) -> None:
        """Count a refusal, and log it."""
        self._refusals[code] += 1
        # A WebSocket at an unknown path is refused without being a request.
        about = {"method": shortened(request.method), "path": shortened(request.path)} if has_request_context() else {}
        log_ids = {"correlation_id": g.correlation.correlation_id} if "correlation" in g else {}
        logger.info("refused", extra={"code": code, "status": status, **about, **log_ids})

    def _problem(self, error: JobwireError) -> Response:
        self._count(error.code, error.status)
        headers = {}
        if error.retry_after_ms is not None:
            headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        older = is_legacy()
        body = frames.encode_error(error, self._bytes_max, _legacy if older else _modern)
        return _answer(body, legacy.status(error) if older else error.status, headers)


def _modern(error: JobwireError) -> bytes:
    return frames.encode(error.problem())


def _legacy(error: JobwireError) -> bytes:
    has_key = "Authorization" in request.headers or "ticket" in request.args
    return frames.encode(legacy.problem(error, g.get("body"), has_key=has_key))


def _answer(body: bytes, status: int, headers: dict[str, str]) -> Response:
    return Response(body, status, headers, content_type=PROBLEM)
