"""HTTP: create, list, look at and cancel jobs; health and readiness. Streams are another transport's, passed in.

A client that asks for `text/event-stream` or JSON speaks the modern dialect; any other Accept (the `*/*` of curl and
older clients) and every call under /v1/inference speak the legacy one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from quart import Blueprint, Quart, Response, g, has_request_context, request
from werkzeug.exceptions import HTTPException, RequestTimeout

from worker import __version__
from worker.errors import FrameTooLarge, JobwireError, UnsupportedMediaType
from worker.jobs.job import Job
from worker.protocol import commands, decoding, frames, legacy, sse, views
from worker.protocol.eventstream import EventStream
from worker.protocol.legacy import LegacyStream
from worker.transports.base import Gateway

JSON = "application/json"
PROBLEM = "application/problem+json"
MODERN = re.compile(r"text/event-stream|application/(problem\+)?json")
EVENT_STREAM = "text/event-stream"

BODY_TIMEOUT_S = 60.0
DISCARD_BYTES_MAX = 64 << 20
DISCARD_TIMEOUT_S = 2.0
"""How much of a refused body is still read. If nobody did, the connection would be reset before the answer is seen."""

INDEX = f"""Jobwire {__version__}, the realtime LLM worker.

  WebSocket  /v1/ws                  subprotocol jobwire.v1
  POST       /v1/jobs                create a job; with Accept: text/event-stream it streams at once
  GET        /v1/jobs                your jobs
  GET        /v1/jobs/ID             state, text so far, cursor
  GET        /v1/jobs/ID/stream      server-sent events; resumes with Last-Event-ID or ?after=
  DELETE     /v1/jobs/ID             cancel
  GET        /health  /v1/ready  /v1/loading/progress
"""

logger = logging.getLogger(__name__)


class Streams(Protocol):
    """The streaming responses, made by another transport."""

    def job_response(
        self, gateway: Gateway, job: Job, stream: EventStream, *, reset: bool, coalesce_ms: int
    ) -> Response:
        """Stream a job in the modern dialect, with at least `coalesce_ms` between its token frames."""
        ...

    def legacy_response(self, gateway: Gateway, job: Job, stream: LegacyStream) -> Response:
        """Stream a job in the legacy dialect."""
        ...

    def loading_response(self, gateway: Gateway) -> Response:
        """Stream the progress of loading."""
        ...


def build(gateway: Gateway, streams: Streams, blueprints: Iterable[Blueprint] = ()) -> Quart:
    """Return the Quart application with all routes, and what other modules add to them."""
    app = Quart("worker", static_folder=None)
    # The limit is ours, see `_body`: Quart's answer to a large body does not arrive.
    app.config["MAX_CONTENT_LENGTH"] = None
    routes = _Routes(gateway, streams)
    for method, rule, view in (
        ("GET", "/", routes.index),
        ("GET", "/health", routes.health),
        ("GET", "/v1/ready", routes.ready),
        ("GET", "/v1/loading/progress", routes.loading),
        ("POST", "/v1/jobs", routes.create),
        ("GET", "/v1/jobs", routes.list),
        ("GET", "/v1/jobs/<job_id>", routes.show),
        ("DELETE", "/v1/jobs/<job_id>", routes.cancel),
        ("GET", "/v1/jobs/<job_id>/stream", routes.stream),
        ("POST", "/v1/inference", routes.create),
        ("GET", "/v1/inference/<job_id>/stream", routes.stream),
    ):
        app.add_url_rule(rule, f"{method} {rule}", view, methods=[method])
    for blueprint in blueprints:
        app.register_blueprint(blueprint)
    app.before_request(routes.guard)
    app.register_error_handler(JobwireError, routes.on_error)
    app.register_error_handler(HTTPException, routes.on_http_exception)
    app.register_error_handler(Exception, routes.on_bug)
    return app


class _Routes:
    """The views. Each returns bytes that the protocol has encoded."""

    def __init__(self, gateway: Gateway, streams: Streams) -> None:
        self._gateway = gateway
        self._streams = streams

    # ---- jobs --------------------------------------------------------------------------------------------------------

    async def create(self) -> Response:
        """POST a job: its description, or its stream at once for a client that asks for one."""
        gateway, principal = self._gateway, self._principal()
        streams = _wants_events()
        if streams:
            # Refused before there is a job.
            gateway.check_room()
        frame = decoding.create_of(await self._body(), request.headers.get("Idempotency-Key"))
        sse.check(frame)
        job, _ = commands.create(gateway.jobs, gateway.operations, gateway.limits, principal, frame)
        gateway.jobs.touch(job)
        if streams:
            return self._job_stream(job, frame.after, frame.channels, frame.coalesce_ms)
        return Response(views.created(job), content_type=JSON)

    async def list(self) -> Response:
        """The caller's jobs."""
        return Response(views.job_list(self._gateway.jobs.list(self._principal())), content_type=JSON)

    async def show(self, job_id: str) -> Response:
        """One job: state, text so far, cursor."""
        job = self._job(job_id)
        return Response(views.job_detail(job, self._gateway.clock.monotonic_ms()), content_type=JSON)

    async def cancel(self, job_id: str) -> Response:
        """Cancel a job."""
        return Response(views.cancelled(self._gateway.jobs.cancel(self._principal(), job_id)), content_type=JSON)

    async def stream(self, job_id: str) -> Response:
        """Stream a job, in the dialect that the client speaks."""
        job = self._job(job_id)
        self._gateway.check_room()
        if _wants_events():
            coalesce_ms = sse.coalesce_ms(request.args.get("coalesce_ms"), self._gateway.limits)
            return self._job_stream(job, request.args.get("after"), coalesce_ms=coalesce_ms)
        return self._streams.legacy_response(self._gateway, job, self._legacy_stream(job))

    def _job_stream(
        self,
        job: Job,
        after: str | None,
        channels: frozenset[frames.Channel] = frames.CHANNELS,
        coalesce_ms: int = 0,
    ) -> Response:
        start = sse.start(job, request.headers.get("Last-Event-ID"), after)
        if start.over:
            return Response(status=204)
        stream = self._gateway.frames.stream(job, start.after, channels)
        return self._streams.job_response(self._gateway, job, stream, reset=start.reset, coalesce_ms=coalesce_ms)

    def _legacy_stream(self, job: Job) -> LegacyStream:
        info = self._gateway.jobs.engine.info
        return LegacyStream(job, info.model if info else "", self._gateway.narrate, info.weights_bytes if info else 0)

    def _job(self, job_id: str) -> Job:
        job = self._gateway.jobs.get(self._principal(), job_id)
        self._gateway.jobs.touch(job)
        return job

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

    def _principal(self) -> str:
        return self._gateway.authenticate(request.headers.get("Authorization"))

    # ---- the worker --------------------------------------------------------------------------------------------------

    async def index(self) -> Response:
        """What is here, for people who open the URL."""
        return Response(INDEX, content_type="text/plain; charset=utf-8")

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

    # ---- refusals ----------------------------------------------------------------------------------------------------

    async def guard(self) -> None:
        """Refuse pages and hosts that are not ours before anything else."""
        host = request.headers.get("Host")
        self._gateway.check_host(host)
        self._gateway.check_origin(request.headers.get("Origin"), host)

    async def on_error(self, error: JobwireError) -> Response:
        """Answer an error of the tree in the client's dialect."""
        await _discard_body()
        return self._problem(error, error.status)

    async def on_http_exception(self, error: HTTPException) -> Response:
        """Answer what Quart refuses (unknown path, wrong method, slow body) with a problem object too."""
        await _discard_body()
        status = error.code or 500
        fields = {
            "type": "about:blank",
            "title": error.name,
            "status": status,
            "detail": error.description or error.name,
            "code": re.sub(r"\W+", "_", error.name.lower()),
            "retriable": status in (408, 503),
        }
        headers = {name: value for name, value in error.get_headers() if name == "Allow"}
        return Response(msgspec.json.encode(fields), status, headers, content_type=PROBLEM)

    async def on_bug(self, error: Exception) -> Response:
        """A bug of ours: log it, and tell the client no more than that."""
        logger.exception("error while answering %s %s", request.method, request.path, exc_info=error)
        return self._problem(JobwireError("The worker made an error. It was logged."), 500)

    def _problem(self, error: JobwireError, status: int) -> Response:
        headers = {}
        if error.retry_after_ms is not None:
            headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if not _is_legacy_path() and MODERN.search(request.headers.get("Accept", "")):
            return Response(views.problem(error.problem()), status, headers, content_type=PROBLEM)
        fields = legacy.legacy_problem(error, g.get("body"), has_key="Authorization" in request.headers)
        return Response(msgspec.json.encode(fields), legacy.legacy_status(error), headers, content_type=PROBLEM)


def _is_legacy_path() -> bool:
    return request.path.startswith("/v1/inference")


def _wants_events() -> bool:
    """Tell whether the client reads server-sent events in the modern dialect."""
    return EVENT_STREAM in request.headers.get("Accept", "") and not _is_legacy_path()


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
