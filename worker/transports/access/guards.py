"""Around every HTTP request: refuses what may not come in, answers preflights, and turns errors into problem objects.

It runs before any route, and its headers are on every answer, errors and streams included.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import msgspec
from quart import Quart, Response, g, has_request_context, request
from werkzeug.exceptions import HTTPException

from worker.dialects.legacy import deprecation
from worker.dialects.legacy import problems as legacy
from worker.errors import JobwireError
from worker.protocol import frames
from worker.transports.access import cors
from worker.transports.correlation import ANSWER_HEADER, correlation_of
from worker.transports.gateway import Gateway

PROBLEM = "application/problem+json"
MODERN = re.compile(r"text/event-stream|application/(problem\+)?json")
API = "/v1/"

WORDS = {
    404: "Nothing at this path answers such a request. /docs lists what there is.",
    405: "This path has no such method. /docs lists those that it has.",
}
"""What to say in place of the framework's own sentences, which speak to readers of pages."""

DISCARD_BYTES_MAX = 64 << 20
DISCARD_TIMEOUT_S = 2.0
"""How much of a refused body is still read. If nobody did, the connection would be reset before the answer is seen."""

logger = logging.getLogger(__name__)


class Guards:
    """What is done before and after each request to the application of a gateway, which acts as `version`."""

    def __init__(self, gateway: Gateway, version: str) -> None:
        self._access = gateway.access
        self._refusals = gateway.frames.tally.refusals
        self._vary = bool(gateway.settings.origins_allowed)
        self._version = version

    def install(self, app: Quart) -> None:
        """Put the guards around an application."""
        app.before_request(self._before)
        app.after_request(self._after)
        app.register_error_handler(JobwireError, self._on_error)
        app.register_error_handler(HTTPException, self._on_http_exception)
        app.register_error_handler(Exception, self._on_bug)

    async def _before(self) -> Response | None:
        """Refuse pages and hosts that are not ours before anything else; answer preflights of those that are."""
        g.correlation = correlation_of(request.headers)
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        self._access.check_host(host)
        self._access.check_origin(origin, host)
        deprecation.refuse_if_gone(request.path, self._version)
        if origin is None or not request.path.startswith(API) or not self._access.is_listed(origin):
            return None
        g.cors = cors.allow(origin, credentials=self._access.required)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return Response(status=204, headers=cors.PREFLIGHT)
        return None

    async def _after(self, response: Response) -> Response:
        response.headers.update(g.get("cors", {}))
        response.headers[ANSWER_HEADER] = g.correlation.correlation_id
        response.headers.update(deprecation.headers(request.path, self._version))
        if self._vary and request.path.startswith(API):
            response.vary.add("Origin")
        return response

    async def _on_error(self, error: JobwireError) -> Response:
        """Answer an error of the tree in the client's dialect."""
        await _discard_body()
        return self._problem(error)

    async def _on_http_exception(self, error: HTTPException) -> Response:
        """Answer what Quart refuses (unknown path, wrong method, slow body) with a problem object too."""
        await _discard_body()
        status, code = error.code or 500, re.sub(r"\W+", "_", error.name.lower())
        fields = {
            "type": "about:blank",
            "title": error.name,
            "status": status,
            "detail": WORDS.get(status) or error.description or error.name,
            "code": code,
            "retriable": status in (408, 503),
        }
        self._refuse(code, status)
        return _answer(fields, status, {name: value for name, value in error.get_headers() if name == "Allow"})

    async def _on_bug(self, error: Exception) -> Response:
        """A bug of ours: log it, and tell the client no more than that."""
        logger.exception("error while answering %s %s", request.method, request.path, exc_info=error)
        return self._problem(JobwireError("The worker made an error. It was logged."))

    def _refuse(self, code: str, status: int) -> None:
        """Count a refusal, and log it."""
        self._refusals[code] += 1
        # A WebSocket at a path that is none is refused without being a request.
        about = {"method": request.method, "path": request.path} if has_request_context() else {}
        names = {"correlation_id": g.correlation.correlation_id} if "correlation" in g else {}
        logger.info("refused", extra={"code": code, "status": status, **about, **names})

    def _problem(self, error: JobwireError) -> Response:
        self._refuse(error.code, error.status)
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


def is_legacy_path() -> bool:
    """Tell whether the request is for the alias that only clients of the older worker know."""
    return request.path.startswith(deprecation.ALIAS)


def is_legacy() -> bool:
    """Return whether the request is answered in the dialect of the older worker."""
    return is_legacy_path() or not MODERN.search(request.headers.get("Accept", ""))


def _answer(problem: msgspec.Struct | dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    return Response(frames.encode(problem), status, headers, content_type=PROBLEM)


async def _discard_body() -> None:
    """Read what the client still sends of a refused request, up to a bound."""
    if not has_request_context():
        # A WebSocket at a path that is none.
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
