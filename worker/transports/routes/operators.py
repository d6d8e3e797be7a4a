"""`/metrics` for Prometheus, and `/v1/stats`: where the worker stands now, as one JSON object."""

from __future__ import annotations

from collections.abc import Callable

from quart import Blueprint, Response, request

from worker.protocol import views
from worker.transports.gateway import Gateway

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def blueprint(gateway: Gateway, exposition: Callable[[], bytes]) -> Blueprint:
    """Return the routes. `exposition` makes Prometheus' text format. Any key opens them, see `metrics_open`."""
    routes = Blueprint("metrics", __name__)
    started_ms = gateway.clock.monotonic_ms()

    @routes.get("/metrics")
    async def metrics() -> Response:
        if not gateway.settings.metrics_open:
            gateway.access.require(request.headers)
        return Response(exposition(), content_type=CONTENT_TYPE)

    @routes.get("/v1/stats")
    async def stats() -> Response:
        gateway.access.require(request.headers)
        uptime_s = (gateway.clock.monotonic_ms() - started_ms) / 1000
        body = views.stats(
            gateway.jobs.engine, live=gateway.jobs.live, sockets=len(gateway.connections), uptime_s=uptime_s
        )
        return Response(body, content_type="application/json", headers={"Cache-Control": "no-store"})

    return routes
