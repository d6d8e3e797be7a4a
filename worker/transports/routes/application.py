"""The Quart application: every route, within the guards, with problem objects for every error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quart import Blueprint, Quart, g, request
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import BadHost
from werkzeug.routing import MapAdapter

from worker import __version__
from worker.transports.access.guards import Guards
from worker.transports.gateway import Gateway
from worker.transports.room import peer_of
from worker.transports.routes import bodies, jobs, operators, tokens
from worker.transports.routes.intake import bounded
from worker.transports.routes.problems import Problems


def build(
    gateway: Gateway,
    exposition: Callable[[], bytes],
    pages: Iterable[Blueprint] = (),
    version: str = __version__,
) -> Quart:
    """Return the application with all routes of `version` and with `pages`. `exposition` makes Prometheus' format."""
    app = _Application("worker", static_folder=None)
    # The limits are ours, see `intake` and `bodies`: Quart's answer to a large body does not reach the client.
    app.config["MAX_CONTENT_LENGTH"] = None
    app.asgi_app = bounded(app.asgi_app, gateway.settings.frame_bytes_max)  # type: ignore[method-assign, assignment]
    for blueprint in (
        jobs.blueprint(gateway),
        tokens.blueprint(gateway),
        operators.blueprint(gateway, exposition),
        *pages,
    ):
        app.register_blueprint(blueprint)
    Guards(gateway.origins, version, credentials=gateway.access.required).install(app)
    app.before_request(bodies.refuse_needless)
    Problems(gateway.tally.refusals, gateway.settings.frame_bytes_max).install(app)

    @app.before_request
    async def recognise() -> None:
        g.grant = gateway.recognise(request.headers, peer_of(request.scope))

    return app


class _Application(Quart):
    """Quart, with small requests. Hosts that are none are for the guards to refuse, whose answer a client can read."""

    request_class = bodies.Request

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Return what finds the route of a request. No route depends on its host."""
        try:
            return super().create_url_adapter(request)
        except BadHost:
            assert request is not None
            return self.url_map.bind(
                "localhost", url_scheme=request.scheme, default_method=request.method, path_info=request.path
            )
