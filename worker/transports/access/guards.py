"""Before and after every HTTP request: refuses foreign hosts and pages, answers preflights, and adds headers.

It runs before any route, and its headers are on every answer, errors and streams included.
"""

from __future__ import annotations

from quart import Quart, Response, g, request

from worker.dialects.legacy import deprecation
from worker.transports.access import cors
from worker.transports.access.origins import Origins
from worker.transports.correlation import ANSWER_HEADER, correlation_of

API = "/v1/"


class Guards:
    """What is done before and after each request. `credentials`: callers need one. `version` is that of the worker."""

    def __init__(self, origins: Origins, version: str, *, credentials: bool) -> None:
        self._origins = origins
        self._version = version
        self._credentials = credentials

    def install(self, app: Quart) -> None:
        """Put the guards around an application."""
        app.before_request(self._before)
        app.after_request(self._after)

    async def _before(self) -> Response | None:
        """Refuse foreign hosts and pages before anything else; answer the preflights of listed pages."""
        g.correlation = correlation_of(request.headers)
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        self._origins.check_host(host)
        self._origins.check_origin(origin, host)
        deprecation.refuse_if_gone(request.path, self._version)
        if origin is None or not request.path.startswith(API) or not self._origins.is_listed(origin):
            return None
        g.cors = cors.allow(origin, credentials=self._credentials)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return Response(status=204, headers=cors.PREFLIGHT)
        return None

    async def _after(self, response: Response) -> Response:
        response.headers.update(g.get("cors", {}))
        response.headers[ANSWER_HEADER] = g.correlation.correlation_id
        response.headers.update(deprecation.headers(request.path, self._version, request.root_path))
        if self._origins.any_listed and request.path.startswith(API):
            response.vary.add("Origin")
        return response
