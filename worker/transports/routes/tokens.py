"""`POST /v1/tokens`: an access token that stands for the caller's key for a while."""

from __future__ import annotations

import math

from quart import Blueprint, Response, request

from worker.protocol import credentials as tokens
from worker.protocol import frames
from worker.transports.access.credentials import COOKIE
from worker.transports.gateway import Gateway
from worker.transports.routes import bodies
from worker.transports.routes.answers import JSON, grant_of_request


def blueprint(gateway: Gateway) -> Blueprint:
    """Return the route of tokens."""
    routes = Blueprint("tokens", __name__)

    @routes.post("/v1/tokens")
    async def create() -> Response:
        """Make a token, and set it as a cookie if the caller asks for that."""
        grant = grant_of_request(gateway)
        asked, ttl_s = tokens.parse(await bodies.read_object(gateway.settings), gateway.settings)
        token = gateway.access.mint(grant, ttl_s, asked.user)
        made = gateway.access.authenticate(token)
        assert made.expires_at_ms is not None
        # The key itself may expire sooner.
        ttl_s = math.ceil((made.expires_at_ms - gateway.clock.monotonic_ms()) / 1000)
        view = tokens.TokenView(token=token, expires_in_s=ttl_s, principal=made.principal.name)
        response = Response(frames.encode(view), headers={"Cache-Control": "no-store"}, content_type=JSON)
        if asked.cookie:
            secure = request.is_secure or request.headers.get("Origin", "").startswith("https:")
            # Workers below other paths of the same host have cookies of their own.
            path = request.root_path or "/"
            response.set_cookie(COOKIE, token, ttl_s, path=path, httponly=True, samesite="Strict", secure=secure)
        return response

    return routes
