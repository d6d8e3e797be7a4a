"""What operators and their programs read: health, readiness, the progress of loading, numbers now and over time."""

from __future__ import annotations

from collections.abc import Callable

from quart import Blueprint, Response, request

from worker.protocol import views
from worker.transports.front.eventstream import loading_events
from worker.transports.gateway import Gateway
from worker.transports.routes.answers import JSON, event_stream, grant_of_request, is_known, json_answer

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def blueprint(gateway: Gateway, exposition: Callable[[], bytes]) -> Blueprint:
    """Return the routes. `exposition` makes Prometheus' text format."""
    routes = Blueprint("operators", __name__)
    started_ms = gateway.clock.monotonic_ms()

    @routes.get("/health")
    async def health() -> Response:
        """Report whether the worker works, and facts about it."""
        status, body = views.health(gateway.jobs.engine, known=is_known())
        return json_answer(body, status)

    @routes.get("/v1/ready")
    async def ready() -> Response:
        """Report whether a job would start now."""
        jobs, known = gateway.jobs, is_known()
        status, body = views.ready(jobs.engine, draining=jobs.draining, known=known, prefix=request.root_path)
        return json_answer(body, status)

    @routes.get("/v1/loading/progress")
    async def loading() -> Response:
        """Stream the progress of loading."""
        return event_stream(loading_events(gateway, known=is_known()))

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Report the metrics of Prometheus. Any key opens them, see `metrics_open`."""
        if not gateway.settings.metrics_open:
            grant_of_request(gateway)
        return Response(exposition(), content_type=PROMETHEUS)

    @routes.get("/v1/stats")
    async def stats() -> Response:
        """Report the state of the worker now as one JSON object."""
        grant_of_request(gateway)
        uptime_s = (gateway.clock.monotonic_ms() - started_ms) / 1000
        return Response(_numbers(gateway, uptime_s), content_type=JSON, headers={"Cache-Control": "no-store"})

    return routes


def _numbers(gateway: Gateway, uptime_s: float) -> bytes:
    return views.stats(
        gateway.jobs.engine,
        live=gateway.jobs.live,
        sockets=len(gateway.connections),
        connections_known=gateway.room.known,
        connections_keyless=gateway.room.keyless,
        uptime_s=uptime_s,
    )
