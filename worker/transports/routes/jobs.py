"""HTTP: create, list, look at and cancel jobs; health and readiness. Streams are another transport's, passed in.

A client that asks for `text/event-stream` or JSON speaks the modern dialect; any other Accept (the `*/*` of curl and
older clients) and every call under /v1/inference speak the legacy one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from quart import Blueprint, Quart, Response, g, request
from werkzeug.exceptions import RequestTimeout

from worker import __version__
from worker.dialects.legacy.stream import LegacyReader
from worker.errors import Forbidden, FrameTooLarge, UnsupportedMediaType
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.protocol import credentials as tokens
from worker.protocol import decoding, frames, sse, views
from worker.protocol.creating import create
from worker.protocol.host import Caller
from worker.protocol.reading import LogReader
from worker.transports.access.credentials import COOKIE
from worker.transports.access.guards import Guards, is_legacy, is_legacy_path
from worker.transports.gateway import Gateway

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

BODY_TIMEOUT_S = 60.0


class Streams(Protocol):
    """The streaming responses, made by another transport."""

    def job_response(
        self,
        gateway: Gateway,
        job: Job,
        grant: Grant,
        reader: LogReader,
        *,
        reset: bool,
        coalesce_ms: int,
        ignored: Sequence[str],
    ) -> Response:
        """Stream a job in the modern dialect, with at least `coalesce_ms` between its token frames."""
        ...

    def legacy_response(self, gateway: Gateway, job: Job, grant: Grant, reader: LegacyReader) -> Response:
        """Stream a job in the legacy dialect."""
        ...

    def loading_response(self, gateway: Gateway) -> Response:
        """Stream the progress of loading."""
        ...


def build(
    gateway: Gateway, streams: Streams, blueprints: Iterable[Blueprint] = (), version: str = __version__
) -> Quart:
    """Return the Quart application with all routes, and what other modules add to them, as `version` has them."""
    app = Quart("worker", static_folder=None)
    # The limit is ours, see `_body`: Quart's answer to a large body does not arrive.
    app.config["MAX_CONTENT_LENGTH"] = None
    routes = _Routes(gateway, streams)
    for method, rule, view in (
        ("GET", "/health", routes.health),
        ("GET", "/v1/ready", routes.ready),
        ("GET", "/v1/loading/progress", routes.loading),
        ("POST", "/v1/jobs", routes.create),
        ("GET", "/v1/jobs", routes.list),
        ("GET", "/v1/jobs/<job_id>", routes.show),
        ("DELETE", "/v1/jobs/<job_id>", routes.cancel),
        ("GET", "/v1/jobs/<job_id>/stream", routes.stream),
        ("POST", "/v1/tokens", routes.token),
        ("POST", "/v1/inference", routes.create),
        ("GET", "/v1/inference/<job_id>/stream", routes.stream),
    ):
        app.add_url_rule(rule, f"{method} {rule}", view, methods=[method])
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    Guards(gateway, version).install(app)
    return app


class _Routes:
    """The views. Each returns bytes that the protocol has encoded."""

    def __init__(self, gateway: Gateway, streams: Streams) -> None:
        self._gateway = gateway
        self._streams = streams

    # ---- jobs --------------------------------------------------------------------------------------------------------

    async def create(self) -> Response:
        """POST a job: its description, or its stream at once for a client that asks for one."""
        gateway, grant = self._gateway, self._grant()
        streams = _wants_events()
        if streams:
            # Refused before there is a job.
            gateway.check_room()
        frame = decoding.create_of(await self._body(), gateway.limits, request.headers.get("Idempotency-Key"))
        creation = create(gateway, Caller(grant.principal, g.correlation), sse.refuse_window(frame))
        job, ignored = creation.job, () if is_legacy() else creation.ignored
        gateway.jobs.touch(job)
        if streams:
            return self._job_stream(job, grant, frame.after, frame.channels, frame.coalesce_ms, ignored)
        return Response(views.created(job, gateway.sse_url(job), ignored), content_type=JSON)

    async def list(self) -> Response:
        """The caller's jobs, or everybody's for an admin who asks for `all`."""
        principal, everybodys = self._grant().principal, request.args.get("all", "0") not in ("", "0", "false")
        if everybodys and not principal.admin:
            raise Forbidden("Only an admin's key lists the jobs of all.")
        found = self._gateway.jobs.list(None if everybodys else principal.name)
        return Response(views.job_list(found, everybodys=everybodys), content_type=JSON)

    async def show(self, job_id: str) -> Response:
        """One job: state, text so far, cursor."""
        gateway, (job, _) = self._gateway, self._readable(job_id)
        body = views.job_detail(job, gateway.clock.monotonic_ms(), gateway.sse_url(job))
        return Response(body, content_type=JSON)

    async def cancel(self, job_id: str) -> Response:
        """Cancel a job: of the caller, or, for an admin, of the `principal` in the query."""
        principal = self._grant().principal
        owner = request.args.get("principal", principal.name)
        if owner != principal.name and not principal.admin:
            raise Forbidden("Only an admin's key cancels the jobs of others.")
        return Response(views.cancelled(self._gateway.jobs.cancel(owner, job_id)), content_type=JSON)

    async def stream(self, job_id: str) -> Response:
        """Stream a job, in the dialect that the client speaks."""
        gateway, (job, grant) = self._gateway, self._readable(job_id)
        gateway.check_room()
        if _wants_events():
            coalesce_ms = sse.coalesce_ms(request.args.get("coalesce_ms"), gateway.limits)
            return self._job_stream(job, grant, request.args.get("after"), coalesce_ms=coalesce_ms)
        return self._streams.legacy_response(gateway, job, grant, self._legacy_reader(job))

    def _job_stream(
        self,
        job: Job,
        grant: Grant,
        after: str | None,
        channels: frozenset[frames.Channel] = frames.CHANNELS,
        coalesce_ms: int = 0,
        ignored: Sequence[str] = (),
    ) -> Response:
        start = sse.start(job, request.headers.get("Last-Event-ID"), after)
        if start.ended:
            return Response(status=204, headers=sse.ignored_header(ignored))
        reader = self._gateway.frames.reader(job, start.after, channels)
        return self._streams.job_response(
            self._gateway, job, grant, reader, reset=start.reset, coalesce_ms=coalesce_ms, ignored=ignored
        )

    def _legacy_reader(self, job: Job) -> LegacyReader:
        info = self._gateway.jobs.engine.info
        return LegacyReader(job, info.model if info else "", self._gateway.narrate, info.weights_bytes if info else 0)

    def _readable(self, job_id: str) -> tuple[Job, Grant]:
        """Return a job that the caller may read: its owner, or whoever has a ticket for it. It is not abandoned now.

        Raises Unauthorized, Forbidden, JobNotFound.
        """
        gateway, ticket = self._gateway, request.args.get("ticket")
        if ticket is not None and gateway.access.required and "Authorization" not in request.headers:
            job, grant = gateway.access.read_ticket(ticket, job_id, gateway.jobs.get)
        else:
            grant = self._grant()
            job = gateway.jobs.get(grant.principal.name, job_id)
        gateway.jobs.touch(job)
        return job, grant

    async def _body(self) -> dict[str, Any]:
        """Return the JSON object in the body. Raises UnsupportedMediaType, FrameTooLarge, BadFrame, RequestTimeout."""
        if not request.is_json:
            raise UnsupportedMediaType("Send the body as JSON, with the header `Content-Type: application/json`.")
        limit = self._gateway.settings.frame_bytes_max
        data = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.body:
                    data += part
                    if len(data) > limit:
                        raise FrameTooLarge(f"The body may have at most {limit} bytes.")
        except TimeoutError:
            raise RequestTimeout from None
        g.body = decoding.load(bytes(data), limit)
        return g.body  # type: ignore[no-any-return]

    def _grant(self) -> Grant:
        """Return for whom the request speaks. Raises Unauthorized and Forbidden."""
        return self._gateway.access.require(request.headers)

    # ---- keys --------------------------------------------------------------------------------------------------------

    async def token(self) -> Response:
        """Make a token that stands for the caller's key for a while, and set it as a cookie if that is asked for."""
        gateway, grant = self._gateway, self._grant()
        asked, ttl_s = tokens.parse(await self._body(), gateway.settings)
        token = gateway.access.mint(grant, ttl_s, asked.user)
        made = gateway.access.authenticate(token)
        assert made.expires_at_ms is not None
        # The key itself may expire sooner.
        ttl_s = math.ceil((made.expires_at_ms - gateway.clock.monotonic_ms()) / 1000)
        view = tokens.TokenView(token=token, expires_in_s=ttl_s, principal=made.principal.name)
        response = Response(frames.encode(view), headers={"Cache-Control": "no-store"}, content_type=JSON)
        if asked.cookie:
            secure = request.is_secure or request.headers.get("Origin", "").startswith("https:")
            response.set_cookie(COOKIE, token, max_age=ttl_s, httponly=True, samesite="Strict", secure=secure)
        return response

    # ---- the worker --------------------------------------------------------------------------------------------------

    async def health(self) -> Response:
        """Whether the worker does its work, and facts about it."""
        status, body = views.health(self._gateway.jobs.engine)
        return Response(body, status, content_type=JSON)

    async def ready(self) -> Response:
        """Whether a job would start now."""
        status, body = views.ready(self._gateway.jobs.engine, draining=self._gateway.jobs.draining)
        return Response(body, status, content_type=JSON)

    async def loading(self) -> Response:
        """The progress of loading, as a stream."""
        return self._streams.loading_response(self._gateway)


def _wants_events() -> bool:
    """Tell whether the client reads server-sent events in the modern dialect."""
    return EVENT_STREAM in request.headers.get("Accept", "") and not is_legacy_path()
