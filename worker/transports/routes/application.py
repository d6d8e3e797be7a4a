"""The Quart application: every route, within the guards, with problem objects for every error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quart import Blueprint, Quart, request

from worker import __version__
from worker.transports.access.guards import Guards
from worker.transports.gateway import Gateway
from worker.transports.room import peer_of
from worker.transports.routes import jobs, operators, tokens
from worker.transports.routes.problems import Problems


def build(
    gateway: Gateway,
    exposition: Callable[[], bytes],
    pages: Iterable[Blueprint] = (),
    version: str = __version__,
) -> Quart:
    """Return the application with all routes of `version` and with `pages`. `exposition` makes Prometheus' format."""
    app = Quart("worker", static_folder=None)
    # The limit is ours, see `bodies`: Quart's answer to a large body does not reach the client.
    app.config["MAX_CONTENT_LENGTH"] = None
    for blueprint in (
        jobs.blueprint(gateway),
        tokens.blueprint(gateway),
        operators.blueprint(gateway, exposition),
        *pages,
    ):
        app.register_blueprint(blueprint)
    Guards(gateway.origins, version, credentials=gateway.access.required).install(app)
    Problems(gateway.tally.refusals).install(app)

    @app.before_request
    async def recognise() -> None:
        gateway.recognise(request.headers, peer_of(request.scope))

    return app
