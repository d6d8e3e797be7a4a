"""Create, list, show, cancel and stream jobs, also under the alias that older clients know."""

from __future__ import annotations

from collections.abc import Sequence

from quart import Blueprint, Response, g, request

from worker.dialects.legacy.deprecation import ALIAS
from worker.errors import Forbidden
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.protocol import decoding, frames, sse, views
from worker.protocol.creating import create
from worker.protocol.host import Caller
from worker.protocol.paging import page_of
from worker.transports.front.eventstream import job_events, push_of
from worker.transports.gateway import Gateway
from worker.transports.room import peer_of
from worker.transports.routes import bodies
from worker.transports.routes.answers import event_stream, grant_of_request, json_answer, rate_limit_headers
from worker.transports.routes.legacy import is_legacy, legacy_stream, names_events, prefers_events


def blueprint(gateway: Gateway) -> Blueprint:
    """Return the routes of jobs."""
    routes, calls = Blueprint("jobs", __name__), _Calls(gateway)
    for method, rule, view in (
        ("POST", "/v1/jobs", calls.create),
        ("GET", "/v1/jobs", calls.list),
        ("GET", "/v1/jobs/<job_id>", calls.show),
        ("DELETE", "/v1/jobs/<job_id>", calls.cancel),
        ("GET", "/v1/jobs/<job_id>/stream", calls.stream),
        ("POST", ALIAS, calls.create),
        ("GET", f"{ALIAS}/<job_id>/stream", calls.stream),
    ):
        routes.add_url_rule(rule, f"{method} {rule}", view, methods=[method])
    routes.after_request(calls.tell_rates)
    return routes


class _Calls:
    """One method per call. Bodies are encoded by the protocol."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def tell_rates(self, response: Response) -> Response:
        """Add what is left of the caller's limits per minute to an answer, be it a refusal."""
        if "caller" in g:
            response.headers.update(rate_limit_headers(self._gateway.jobs.rates(g.caller)))
        return response

    async def create(self) -> Response:
        """Create a job and answer with its description, or with its stream if the client asks for one."""
        gateway, grant = self._gateway, self._grant()
        streams = prefers_events()
        body = await bodies.read_object(gateway.settings)
        frame = decoding.create_of_post(body, gateway.limits, request.headers.get("Idempotency-Key"))
        creation = create(gateway, Caller(grant.principal, g.correlation), frame)
        job, ignored = creation.job, () if is_legacy() else creation.ignored
        gateway.jobs.touch(job)
        if streams:
            return self._job_stream(job, grant, frame.after, frame.channels, frame.coalesce_ms, ignored)
        prefix = request.root_path
        return json_answer(views.created(job, prefix + gateway.sse_url(job), ignored, prefix + views.WS_URL))

    async def list(self) -> Response:
        """List a page of the caller's jobs, or of everybody's for an admin who asks for `all`."""
        principal, everybodys = self._grant().principal, request.args.get("all", "0") not in ("", "0", "false")
        if everybodys and not principal.admin:
            raise Forbidden("Only an admin's key lists the jobs of all callers.")
        page = page_of(request.args.get("limit"), request.args.get("after"))
        # One more than the page has: whether there is another one.
        found = self._gateway.jobs.list(None if everybodys else principal.name, page.before, page.limit + 1)
        return json_answer(views.job_list(found, page, everybodys=everybodys))

    async def show(self, job_id: str) -> Response:
        """Show one job: state, text so far, cursor."""
        gateway, (job, _) = self._gateway, self._readable(job_id)
        sse_url = request.root_path + gateway.sse_url(job)
        return json_answer(views.job_detail(job, gateway.clock.monotonic_ms(), sse_url))

    async def cancel(self, job_id: str) -> Response:
        """Cancel a job of the caller, or, for an admin, of the `principal` in the query."""
        principal = self._grant().principal
        owner_name = request.args.get("principal", principal.name)
        if owner_name != principal.name and not principal.admin:
            raise Forbidden("Only an admin's key cancels the jobs of others.")
        return json_answer(views.cancelled(self._gateway.jobs.cancel(owner_name, job_id)))

    async def stream(self, job_id: str) -> Response:
        """Stream a job, in the dialect that the client speaks."""
        gateway, (job, grant) = self._gateway, self._readable(job_id)
        if not names_events():
            return legacy_stream(gateway, job, grant)
        coalesce_ms = sse.coalesce_ms(request.args.get("coalesce_ms"), gateway.limits)
        return self._job_stream(job, grant, request.args.get("after"), coalesce_ms=coalesce_ms)

    def _job_stream(
        self,
        job: Job,
        grant: Grant,
        after: str | None,
        channels: frozenset[frames.Channel] = frames.CHANNELS,
        coalesce_ms: int = 0,
        ignored: Sequence[str] = (),
    ) -> Response:
        gateway, start = self._gateway, sse.start(job, request.headers.get("Last-Event-ID"), after)
        named = sse.ignored_header(ignored)
        if start.ended:
            return Response(status=204, headers=named)
        reader = gateway.frame_source.reader(job, start.after, channels)
        push = push_of(request.scope)
        events = job_events(
            gateway, job, grant, reader, push, reset=start.reset, coalesce_ms=coalesce_ms, ignored=ignored
        )
        return event_stream(events, named)

    def _readable(self, job_id: str) -> tuple[Job, Grant]:
        """Return a job that the caller owns or has a ticket for, with the grant. The job counts as watched now.

        Raises Unauthorized, Forbidden, JobNotFound, Overloaded.
        """
        gateway, ticket = self._gateway, request.args.get("ticket")
        if ticket is not None and gateway.access.required and "Authorization" not in request.headers:
            job, grant = gateway.access.read_ticket(ticket, job_id, gateway.jobs.get)
            gateway.admit(peer_of(request.scope))
        else:
            grant = self._grant()
            job = gateway.jobs.get(grant.principal.name, job_id)
        gateway.jobs.touch(job)
        return job, grant

    def _grant(self) -> Grant:
        grant = grant_of_request(self._gateway)
        g.caller = grant.principal
        return grant
