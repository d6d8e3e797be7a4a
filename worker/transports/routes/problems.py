"""Turns every error of a request into a problem object, in the dialect that the client speaks, and counts it."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Any

import msgspec
from quart import Quart, Response, g, has_request_context, request
from werkzeug.exceptions import HTTPException

from worker.dialects.legacy import problems as legacy
from worker.errors import JobwireError
from worker.protocol import frames
from worker.transports.routes import bodies
from worker.transports.routes.legacy import is_legacy

PROBLEM = "application/problem+json"

DETAILS = {
    404: "There is nothing at this path. {prefix}/docs lists all paths.",
    405: "This path does not support this method. {prefix}/docs lists the methods of each path.",
}
"""Replaces the framework's own sentences, which are written for readers of pages."""

logger = logging.getLogger(__name__)


class Problems:
    """The error handlers of the application. `refusals` counts errors by code."""

    def __init__(self, refusals: Counter[str]) -> None:
        self._refusals = refusals

    def install(self, app: Quart) -> None:
        """Register the handlers with an application."""
        app.register_error_handler(JobwireError, self._on_error)
        app.register_error_handler(HTTPException, self._on_http_exception)
        app.register_error_handler(Exception, self._on_bug)

    async def _on_error(self, error: JobwireError) -> Response:
        """Answer an error of our tree."""
        await bodies.discard()
        return self._problem(error)

    async def _on_http_exception(self, error: HTTPException) -> Response:
        """Answer a refusal of Quart (unknown path, wrong method, slow body), with a problem object too."""
        await bodies.discard()
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
        return _answer(fields, status, {name: value for name, value in error.get_headers() if name == "Allow"})

    async def _on_bug(self, error: Exception) -> Response:
        """Log a bug of ours, and tell the client no details."""
        about = {"method": request.method, "path": request.path}
        logger.exception("error while answering", exc_info=error, extra=about)
        return self._problem(JobwireError("Something went wrong in the worker. The error was logged."))

    def _count(self, code: str, status: int) -> None:
        """Count a refusal, and log it."""
        self._refusals[code] += 1
        # A WebSocket at an unknown path is refused without being a request.
        about = {"method": request.method, "path": request.path} if has_request_context() else {}
        log_ids = {"correlation_id": g.correlation.correlation_id} if "correlation" in g else {}
        logger.info("refused", extra={"code": code, "status": status, **about, **log_ids})

    def _problem(self, error: JobwireError) -> Response:
        self._count(error.code, error.status)
        headers = {}
        if error.retry_after_ms is not None:
            headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if not is_legacy():
            return _answer(error.problem(), error.status, headers)
        has_key = "Authorization" in request.headers or "ticket" in request.args
        fields = legacy.problem(error, g.get("body"), has_key=has_key)
        return _answer(fields, legacy.status(error), headers)


def _answer(problem: msgspec.Struct | dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    return Response(frames.encode(problem), status, headers, content_type=PROBLEM)
