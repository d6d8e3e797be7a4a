"""One WebSocket connection, without the socket: messages in, messages out, never waiting.

The transport hands every message to `receive` and sends what `pull` returns. `pull` gives replies first, then the
subscriptions that have something, in turn, one frame each. A log wakes its subscription, so nothing is ever scanned.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import msgspec

from worker import __version__
from worker.errors import (
    BadFrame,
    FieldError,
    Forbidden,
    FrameTooLarge,
    JobwireError,
    TooManyJobs,
    Unauthorized,
    UnsupportedMediaType,
)
from worker.jobs.correlation import UNKNOWN, Correlation
from worker.jobs.job import Job
from worker.jobs.limits.principals import Grant
from worker.protocol import creating, decoding, frames
from worker.protocol.closing import CloseCode, CloseConnection
from worker.protocol.frames import Accepted, Error, Goaway, Hello, Pong, ServerFrame, ServerLimits
from worker.protocol.host import Caller, SessionHost
from worker.protocol.meter import Meter
from worker.protocol.reading import locate, wire_queue, wire_state
from worker.protocol.subscriptions import Subscriptions

FEATURES = (
    "update", "channels", "window", "coalesce", "auth", "goaway",
    "ids", "logprobs", "top_logprobs", "n", "priority", "deadline", "detach", "ignored",
)  # fmt: skip
"""What the worker offers beyond the minimum."""

BAD_FRAMES_MAX = 10
BAD_FRAMES_WINDOW_MS = 10_000
BAD = (BadFrame, FrameTooLarge, UnsupportedMediaType, Unauthorized)
"""Errors that count as abuse: BAD_FRAMES_MAX of them within BAD_FRAMES_WINDOW_MS close the connection."""

GOAWAY_RETRY_MS = 2000
"""When to try again after a goaway: a restart takes about this time, and other workers are available at once."""


logger = logging.getLogger(__name__)


class Session:
    """A client's side of one connection. `wake` is called whenever `pull` may have something new.

    With a `grant` it speaks for its principal. Without one the client must send an `auth` frame first, in time.
    `prefix` is the path of a proxy that the client came through: addresses that it gets begin with it.
    """

    def __init__(
        self,
        host: SessionHost,
        grant: Grant | None,
        authenticate: Callable[[str], Grant],
        wake: Callable[[], None],
        correlation: Correlation = UNKNOWN,
        prefix: str = "",
    ) -> None:
        self._host = host
        self._prefix = prefix
        self._correlation = correlation
        self._settings = host.settings
        self._grant = grant
        self._authenticate = authenticate
        self._wake = wake
        self._auth_until_ms = math.inf
        # A list, though a queue: it is nearly always empty, and then a deque has 0.7 KiB. So are those beside it.
        self._outbox: list[bytes] = []
        self._subscriptions = Subscriptions(host.jobs, wake, host.timer)
        self._pings: Meter | None = None
        self._bad_frames_ms: list[float] = []
        self._leaving = False

    @property
    def grant(self) -> Grant | None:
        """The grant of the connection; None before the `auth` frame."""
        return self._grant

    def renew(self, grant: Grant | None) -> None:
        """Continue with the grant as it is since the keys were reloaded. Raises CloseConnection for None."""
        if grant is None:
            raise CloseConnection(CloseCode.UNAUTHORIZED, "This key is no longer valid.")
        self._grant = grant

    # ---- out ---------------------------------------------------------------------------------------------------------

    def greet(self, now_ms: float) -> None:
        """Queue the hello frame, and begin to wait for a credential if there was none."""
        self._auth_until_ms = now_ms + self._settings.auth_timeout_s * 1000
        self._reply(self._hello(now_ms))

    def heartbeat(self) -> None:
        """Queue an unsolicited pong, unless something else is about to be sent."""
        if not self._outbox and not self._subscriptions.ready:
            self._reply(Pong())

    def goaway(self) -> None:
        """Queue a goaway, once: the worker shuts down."""
        if not self._leaving:
            self._leaving = True
            self._reply(Goaway(reason="shutdown", retry_ms=GOAWAY_RETRY_MS))

    def finish(self) -> None:
        """Send what windows hold back: the client can no longer send an ack for it."""
        self._subscriptions.release()

    def pull(self, now_ms: float) -> bytes | None:
        """Return the next message to send at monotonic time `now_ms`, or None if there is none now."""
        return self._outbox.pop(0) if self._outbox else self._subscriptions.pull(now_ms)

    def close(self) -> None:
        """Stop following all jobs. The session is not used afterwards."""
        self._subscriptions.clear()
        self._outbox.clear()

    # ---- in ----------------------------------------------------------------------------------------------------------

    def check_time(self, now_ms: float) -> None:
        """Raise CloseConnection if the client has not authenticated in time, or its credential has expired."""
        if self._grant is None:
            if now_ms >= self._auth_until_ms:
                raise CloseConnection(
                    CloseCode.AUTH_TIMEOUT, f"No auth frame within {self._settings.auth_timeout_s:g} s."
                )
        elif self._grant.expires_at_ms is not None and now_ms >= self._grant.expires_at_ms:
            raise CloseConnection(
                CloseCode.UNAUTHORIZED,
                "The credential has expired. Next time, send a new one in an `auth` frame before it does.",
            )

    def receive(self, data: str | bytes, now_ms: float) -> None:
        """Act on one message at monotonic time `now_ms` and queue its one reply. Raises CloseConnection for abuse."""
        self.check_time(now_ms)
        if len(self._outbox) >= self._settings.outbox_replies_max:
            raise CloseConnection(
                CloseCode.ABUSE, f"{len(self._outbox)} replies wait unread. Read them before sending more."
            )
        fields: dict[str, object] = {}
        reply: ServerFrame | None
        try:
            if isinstance(data, bytes):
                raise UnsupportedMediaType("The message is binary. Send JSON as a text message.")
            fields = decoding.load(data, self._settings.frame_bytes_max, self._settings.json_members_max)
            reply = self._act(decoding.interpret(fields, self._host.limits), now_ms)
        except JobwireError as error:
            self._host.tally.refusals[error.code] += 1
            if isinstance(error, BAD):
                self._count_bad_frame(now_ms)
            job_id = _short(fields.get("job_id"))
            log_ids = {"job_id": job_id, "correlation_id": self._correlation.correlation_id}
            logger.info("refused", extra={"code": error.code, "frame": _short(fields.get("type")), **log_ids})
            self._refuse(error, job_id, _short(fields.get("ref")))
            return
        if reply is not None:
            self._reply(reply)

    def _act(self, frame: frames.ClientFrame, now_ms: float) -> ServerFrame | None:
        if isinstance(frame, frames.Auth):
            return self._auth(frame, now_ms)
        if self._grant is None:
            raise Unauthorized("Send an auth frame first.")
        jobs, owner_name = self._host.jobs, self._grant.principal.name
        match frame:
            case frames.Create():
                self._check_subscriptions(frame.job_id)
                creation = creating.create(self._host, Caller(self._grant.principal, self._correlation), frame)
                return self._follow(creation.job, frame, replayed=creation.existing, ignored=creation.ignored)
            case frames.Subscribe():
                job = jobs.get(owner_name, frame.job_id)
                self._check_subscriptions(frame.job_id)
                return self._follow(job, frame)
            case frames.Unsubscribe():
                # A job that has just ended is dropped already: that is not worth an error.
                self._subscriptions.drop(frame.job_id)
                return None
            case frames.Ack():
                self._ack(frame, owner_name)
                return None
            case frames.Cancel():
                return self._accepted(jobs.cancel(owner_name, frame.job_id), frame.ref)
            case frames.Update():
                return self._accepted(jobs.prioritize(owner_name, frame.job_id, frame.priority), frame.ref)
            case _:
                self._count_ping(now_ms)
                return Pong(t=frame.t, ref=frame.ref)

    def _auth(self, frame: frames.Auth, now_ms: float) -> ServerFrame | None:
        """Check a credential. The first opens the connection, or closes it if it is wrong; later ones prolong it."""
        before = self._grant
        try:
            grant = self._authenticate(frame.token)
        except Unauthorized as error:
            if before is None:
                raise CloseConnection(CloseCode.UNAUTHORIZED, error.detail) from None
            raise
        if before is not None and grant.principal.name != before.principal.name:
            raise Forbidden("The credential belongs to another caller. Open another connection for it.")
        self._grant = grant
        return self._hello(now_ms, frame.ref) if before is None else None

    def _ack(self, frame: frames.Ack, owner_name: str) -> None:
        job = self._host.jobs.get(owner_name, frame.job_id)
        # The last acks of a job that has just ended, and was dropped, may still be in flight.
        known = (
            self._subscriptions.ack(frame.job_id, frame.cursor)
            if frame.job_id in self._subscriptions
            else job.log.position(frame.cursor) is not None
        )
        if not known:
            detail = "Expected the cursor of a frame that was sent here, of a job that is followed with a `window`"
            raise decoding.invalid(FieldError("/cursor", detail))

    def _follow(
        self,
        job: Job,
        frame: frames.Create | frames.Subscribe,
        *,
        replayed: bool = False,
        ignored: tuple[str, ...] = (),
    ) -> ServerFrame:
        """Subscribe to a job, in place of an earlier position in it, and return the reply."""
        self._subscriptions.drop(job.id)
        start = locate(job, frame.after)
        if start.reset:
            self._host.tally.resets += 1
        if not start.ended:
            reader = self._host.frame_source.reader(job, start.after, frame.channels)
            self._subscriptions.follow(reader, frame.window, frame.coalesce_ms)
        reply = self._accepted(job, frame.ref)
        return msgspec.structs.replace(reply, replayed=replayed, reset=start.reset, over=start.ended, ignored=ignored)

    def _check_subscriptions(self, job_id: str | None) -> None:
        """Refuse before anything is created. Raises TooManyJobs."""
        most = self._settings.subscriptions_per_connection_max
        if len(self._subscriptions) >= most and job_id not in self._subscriptions:
            raise TooManyJobs(
                f"This connection follows {most} jobs, the limit for one. Unsubscribe, or open another connection.",
                retry_after_ms=1000,
            )

    def _count_ping(self, now_ms: float) -> None:
        most = self._settings.control_frames_per_s_max
        if self._pings is None:
            self._pings = Meter(most, now_ms)
        if not self._pings.take(now_ms):
            raise CloseConnection(CloseCode.ABUSE, f"More than {most} pings per second.")

    def _count_bad_frame(self, now_ms: float) -> None:
        times = self._bad_frames_ms
        times.append(now_ms)
        del times[:-BAD_FRAMES_MAX]
        if len(times) == BAD_FRAMES_MAX and now_ms - times[0] <= BAD_FRAMES_WINDOW_MS:
            raise CloseConnection(
                CloseCode.ABUSE, f"{BAD_FRAMES_MAX} bad frames within {BAD_FRAMES_WINDOW_MS // 1000} s."
            )

    # ---- replies -----------------------------------------------------------------------------------------------------

    def _reply(self, frame: ServerFrame) -> None:
        self._outbox.append(frames.encode(frame))
        self._wake()

    def _refuse(self, error: JobwireError, job_id: str | None, ref: str | None) -> None:
        def encoded(error: JobwireError) -> bytes:
            return frames.encode(Error(error=error.problem(), job_id=job_id, ref=ref))

        self._outbox.append(frames.encode_error(error, self._settings.frame_bytes_max, encoded))
        self._wake()

    def _hello(self, now_ms: float, ref: str | None = None) -> Hello:
        settings, grant = self._settings, self._grant
        expires_at_ms = grant.expires_at_ms if grant is not None else None
        jobs_max = grant.principal.allowance.jobs_max if grant is not None else 0
        return Hello(
            protocol=frames.PROTOCOL,
            server=f"jobwire/{__version__}",
            features=FEATURES,
            auth="required" if grant is None else "ok",
            expires_in=None if expires_at_ms is None else max(int(expires_at_ms - now_ms) // 1000, 0),
            limits=ServerLimits(
                max_frame_bytes=settings.frame_bytes_max,
                max_members=settings.json_members_max,
                max_messages=settings.messages_max,
                max_jobs=jobs_max or settings.jobs_per_account_max,
                max_queue=settings.queue_jobs_max,
                max_subscriptions=settings.subscriptions_per_connection_max,
                max_window=settings.window_frames_max,
                max_coalesce_ms=settings.coalesce_ms_max,
                heartbeat_s=settings.heartbeat_s,
                auth_timeout_s=settings.auth_timeout_s,
                orphan_ttl_s=settings.orphan_ttl_s,
                retention_s=settings.retention_s,
            ),
            ref=ref,
        )

    def _accepted(self, job: Job, ref: str | None) -> Accepted:
        return Accepted(
            job_id=job.id,
            state=wire_state(job),
            priority=job.priority,
            queue=wire_queue(job),
            sse_url=self._prefix + self._host.sse_url(job),
            ref=ref,
        )


def _short(value: object) -> str | None:
    """Return an id in a bad frame if it is short text, which can be echoed."""
    return value if isinstance(value, str) and len(value) <= 256 else None
