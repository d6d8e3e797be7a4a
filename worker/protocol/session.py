"""One WebSocket connection, without the socket: messages in, messages out, never waiting.

The transport hands every message to `receive` and sends what `pull` returns. `pull` gives replies first, then the
subscriptions that have something, in turn, one frame each. A log wakes its subscription, so nothing is ever scanned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

from worker import __version__
from worker.config import Settings
from worker.errors import BadFrame, FrameTooLarge, JobwireError, TooManyJobs, UnsupportedMediaType, UnsupportedOperation
from worker.jobs.job import Job
from worker.jobs.service import Jobs
from worker.operations.base import Limits, Operation
from worker.protocol import commands, decoding, frames
from worker.protocol.eventstream import EventStream, FrameSource, locate, wire_queue, wire_state
from worker.protocol.frames import Accepted, Channel, Error, Hello, Pong, ServerFrame, ServerLimits

FEATURES = ("update", "channels", "ids", "logprobs", "top_logprobs", "n", "priority", "deadline", "detach")
"""What is offered beyond the least that every worker has."""

BAD_FRAMES_MAX = 10
BAD_FRAMES_WINDOW_MS = 10_000
REASON_BYTES_MAX = 123
"""RFC 6455: a control frame has 125 bytes at most, two of which are the close code."""


class CloseCode(IntEnum):
    """Why a connection ends: 1000 is done, 44xx means fix something first, anything else reconnect and resume."""

    DONE = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    BUG = 1011
    RESTART = 1012
    ABUSE = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    VERSION = 4406
    AUTH_TIMEOUT = 4408
    OVERLOADED = 4503
    STALLED = 4504


class Close(Exception):
    """The connection must be closed with this code and this reason, which is cut to what fits a close frame."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason.encode(errors="replace")[:REASON_BYTES_MAX].decode(errors="ignore")


class _Subscription:
    """A position in a job's log, and whether it stands in the line of those that have something to send."""

    __slots__ = ("_enqueue", "queued", "stream")

    def __init__(self, stream: EventStream, enqueue: Callable[[_Subscription], None]) -> None:
        self.stream = stream
        self.queued = False
        self._enqueue = enqueue

    def notify(self) -> None:
        """The log has grown."""
        if not self.queued:
            self._enqueue(self)


class Session:
    """A client's side of one connection. `wake` is called whenever `pull` may have something new."""

    def __init__(
        self,
        jobs: Jobs,
        operations: Mapping[str, Operation],
        settings: Settings,
        limits: Limits,
        source: FrameSource,
        principal: str,
        wake: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._operations = operations
        self._settings = settings
        self._limits = limits
        self._source = source
        self._principal = principal
        self._wake = wake
        self._outbox: deque[bytes] = deque()
        self._subscriptions: dict[str, _Subscription] = {}
        self._ready: deque[_Subscription] = deque()
        self._bad_frames_ms: deque[float] = deque(maxlen=BAD_FRAMES_MAX)

    # ---- out ---------------------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Queue the hello frame."""
        settings = self._settings
        limits = ServerLimits(
            max_frame_bytes=settings.frame_bytes_max,
            max_jobs=settings.jobs_per_principal_max,
            max_queue=settings.queue_jobs_max,
            max_subscriptions=settings.subscriptions_per_connection_max,
            max_window=0,
            max_coalesce_ms=0,
            heartbeat_s=settings.heartbeat_s,
            auth_timeout_s=settings.auth_timeout_s,
            orphan_ttl_s=settings.orphan_ttl_s,
            retention_s=settings.retention_s,
        )
        server = f"jobwire/{__version__}"
        self._reply(Hello(protocol=frames.PROTOCOL, server=server, features=FEATURES, auth="ok", limits=limits))

    def heartbeat(self) -> None:
        """Queue a pong unasked, unless something waits to be sent anyway."""
        if not self._outbox and not self._ready:
            self._reply(Pong())

    def pull(self) -> bytes | None:
        """Take the next message to send, or None if there is nothing to say now."""
        if self._outbox:
            return self._outbox.popleft()
        while self._ready:
            subscription = self._ready.popleft()
            subscription.queued = False
            stream = subscription.stream
            if self._subscriptions.get(stream.job.id) is not subscription:
                continue
            frame = stream.next()
            if stream.pending:
                self._enqueue(subscription)
            elif stream.done:
                self._drop(stream.job.id)
            if frame is not None:
                return frame.data
        return None

    def close(self) -> None:
        """Stop following all jobs. The session is not used afterwards."""
        for job_id in list(self._subscriptions):
            self._drop(job_id)
        self._outbox.clear()

    # ---- in ----------------------------------------------------------------------------------------------------------

    def receive(self, data: str | bytes, now_ms: float) -> None:
        """Act on one message at monotonic time `now_ms` and queue its one reply. Raises Close for abuse."""
        if len(self._outbox) >= self._settings.outbox_replies_max:
            raise Close(CloseCode.ABUSE, f"{len(self._outbox)} replies wait unread. Read them before asking more.")
        fields: dict[str, object] = {}
        reply: ServerFrame | None
        try:
            if isinstance(data, bytes):
                raise UnsupportedMediaType("The message is binary. Send JSON as a text message.")
            fields = decoding.load(data, self._settings.frame_bytes_max)
            reply = self._act(decoding.interpret(fields))
        except JobwireError as error:
            if isinstance(error, BadFrame | FrameTooLarge | UnsupportedMediaType):
                self._count_bad_frame(now_ms)
            reply = Error(error=error.problem(), job_id=_short(fields.get("job_id")), ref=_short(fields.get("ref")))
        if reply is not None:
            self._reply(reply)

    def _act(self, frame: frames.ClientFrame) -> ServerFrame | None:
        jobs, principal = self._jobs, self._principal
        match frame:
            case frames.Create():
                return self._create(frame)
            case frames.Subscribe():
                commands.check_delivery(frame)
                job = jobs.get(principal, frame.job_id)
                self._check_room(frame.job_id)
                return self._follow(job, frame.after, frame.channels, frame.ref)
            case frames.Unsubscribe():
                # A job that has just ended was dropped already: not worth an error.
                self._drop(frame.job_id)
                return None
            case frames.Cancel():
                return _accepted(jobs.cancel(principal, frame.job_id), frame.ref)
            case frames.Update():
                return _accepted(jobs.prioritize(principal, frame.job_id, frame.priority), frame.ref)
            case frames.Ack() | frames.Auth():
                raise UnsupportedOperation("This worker takes no such frames. `hello.features` lists what it offers.")
            case frames.Ping():
                return Pong(t=frame.t, ref=frame.ref)

    def _create(self, frame: frames.Create) -> ServerFrame:
        self._check_room(frame.job_id)
        job, replayed = commands.create(self._jobs, self._operations, self._limits, self._principal, frame)
        return self._follow(job, frame.after, frame.channels, frame.ref, replayed)

    def _follow(
        self, job: Job, after: str | None, channels: Iterable[Channel], ref: str | None, replayed: bool = False
    ) -> ServerFrame:
        """Subscribe to a job, in place of an earlier position in it, and return the reply."""
        self._drop(job.id)
        start = locate(job, after)
        if not start.over:
            subscription = _Subscription(self._source.stream(job, start.after, channels), self._enqueue)
            self._subscriptions[job.id] = subscription
            self._jobs.watch(job, subscription.notify)
            if subscription.stream.pending:
                self._enqueue(subscription)
        return _accepted(job, ref, replayed=replayed, reset=start.reset, over=start.over)

    def _check_room(self, job_id: str | None) -> None:
        """Refuse before anything is created. Raises TooManyJobs."""
        most = self._settings.subscriptions_per_connection_max
        if len(self._subscriptions) >= most and job_id not in self._subscriptions:
            raise TooManyJobs(
                f"This connection follows {most} jobs, as many as one may. Unsubscribe, or open another connection.",
                retry_after_ms=1000,
            )

    def _drop(self, job_id: str) -> None:
        """Stop following a job. It may still stand in the line: then it is passed over."""
        subscription = self._subscriptions.pop(job_id, None)
        if subscription is not None:
            self._jobs.unwatch(subscription.stream.job, subscription.notify)

    def _enqueue(self, subscription: _Subscription) -> None:
        subscription.queued = True
        self._ready.append(subscription)
        self._wake()

    def _reply(self, frame: ServerFrame) -> None:
        self._outbox.append(frames.encode(frame))
        self._wake()

    def _count_bad_frame(self, now_ms: float) -> None:
        times = self._bad_frames_ms
        times.append(now_ms)
        if len(times) == BAD_FRAMES_MAX and now_ms - times[0] <= BAD_FRAMES_WINDOW_MS:
            raise Close(CloseCode.ABUSE, f"{BAD_FRAMES_MAX} bad frames within {BAD_FRAMES_WINDOW_MS // 1000} s.")


def _accepted(
    job: Job, ref: str | None, *, replayed: bool = False, reset: bool = False, over: bool = False
) -> Accepted:
    return Accepted(
        job_id=job.id,
        state=wire_state(job),
        queue=wire_queue(job),
        replayed=replayed,
        reset=reset,
        over=over,
        sse_url=frames.sse_url(job.id),
        ref=ref,
    )


def _short(value: object) -> str | None:
    """Return what a bad frame calls its job or itself, if it can be echoed."""
    return value if isinstance(value, str) and len(value) <= 256 else None
