"""The jobs of this worker: creates them, lets them live, and is the only writer of their logs.

It runs on the gateway's event loop and never waits. Clients' commands come from above (`create`, `cancel`, ...), the
engine's events from below (it is the broker's sink), and time through `sweep`, which the app calls at a steady pace.
What is handed to the broker, and under which lease, is kept in `handing`; which jobs are known, in `registry`.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable

from worker.brokers.base import Broker, EngineState
from worker.config import Settings
from worker.engines.base import Broke, Delta, Paused, Prefilled
from worker.errors import (
    Draining,
    EngineFailed,
    IdempotencyMismatch,
    InvalidParams,
    JobLost,
    ModelError,
    Problem,
)
from worker.events import (
    TERMINAL,
    Admitted,
    Cancelled,
    Event,
    Failed,
    FirstToken,
    Note,
    Preempted,
    Progress,
    Queued,
    Resumed,
    Token,
    Tokenized,
    Usage,
)
from worker.jobs import remarks
from worker.jobs.agenda import Agenda
from worker.jobs.clock import Clock
from worker.jobs.correlation import UNKNOWN, Correlation
from worker.jobs.handing import Handing, is_blamed
from worker.jobs.job import Choice, Job
from worker.jobs.lifecycle import next_state
from worker.jobs.limits.admission import Admission
from worker.jobs.limits.principals import Principal
from worker.jobs.limits.quota import Rate
from worker.jobs.limits.retention import Retention
from worker.jobs.news import News, Observer, TokenObserver
from worker.jobs.registry import Registry
from worker.operations.base import JobRequest
from worker.scheduler.works import Batch, Placed, Refused, Started, WorkEvent


class Jobs:
    """All jobs by (owner_name, id). Commands raise errors of the tree; an owner never sees another's jobs."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        clock: Clock,
        observers: Iterable[Observer] = (),
        token_observers: Iterable[TokenObserver] = (),
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._broker = broker
        self._handing = Handing(broker)
        self._settings = settings
        self._clock = clock
        self._news = News(observers, token_observers)
        # The time of the engine step that is being written, monotonic and wall.
        self._step_at: tuple[float, int] | None = None
        self._new_id = new_id
        self._registry = Registry(Retention(settings.retention_s * 1000, settings.retention_bytes_max))
        self._live = self._registry.live
        self._admission = Admission(settings)
        self._agenda = Agenda(settings.orphan_ttl_s * 1000, 0.0 if broker.state.phase == "ready" else math.inf)
        self._on_idle: list[Callable[[], None]] = []
        self.draining = False

    # ---- commands of clients -----------------------------------------------------------------------------------------

    @property
    def engine(self) -> EngineState:
        """Where the engine stands."""
        return self._broker.state

    @property
    def live(self) -> int:
        """Number of jobs that have not ended."""
        return len(self._live)

    def create(
        self,
        owner: Principal,
        job_id: str | None,
        request: JobRequest,
        *,
        resuming: bool = False,
        correlation: Correlation = UNKNOWN,
    ) -> tuple[Job, bool]:
        """Create a job, or find the one that the same request created before; return it and whether it was found.

        Raises IdempotencyMismatch for a taken id, JobLost if a client resumes a job that is unknown, InvalidParams for
        a prompt or form that was refused a moment ago, and Draining, ModelError, QueueFull, TooManyJobs or RateLimited
        if no new job is accepted now.
        """
        found = self._registry.find(owner.name, job_id) if job_id else None
        if found is not None:
            if found.request.fingerprint != request.fingerprint:
                raise IdempotencyMismatch(f"Job {found.id} exists with another body. Choose a new job_id.")
            return found, True
        if resuming:
            raise JobLost(f"Job {job_id} is no longer known here. Create it again, without `after`, to run it anew.")
        if self.draining:
            raise Draining("This worker is shutting down. Try again soon.", retry_after_ms=2000)
        state = self._broker.state
        if not request.script:
            if state.phase == "failed" and state.error is not None:
                raise ModelError(state.error.detail)
            refusal = self._broker.refusal(request.prompt, request.sampling.response_format)
            if refusal is not None:
                raise InvalidParams(refusal.detail, errors=refusal.errors)
        self._admission.admit(owner, request, state.stats, self._clock.monotonic_ms())
        return self._start(owner, job_id or f"job-{self._new_id()}", request, correlation), False

    def get(self, owner_name: str, job_id: str) -> Job:
        """Return a job. Raises JobNotFound."""
        return self._registry.get(owner_name, job_id)

    def list(self, owner_name: str | None, before: float = math.inf, limit: int | None = None) -> list[Job]:
        """Return the jobs of one owner, or with None those of all, that have a number below `before`: newest first."""
        return self._registry.list(owner_name, before, limit)

    def rates(self, owner: Principal) -> tuple[Rate, ...]:
        """Return what is left now of each limit per minute that this owner has."""
        return self._admission.rates(owner, self._clock.monotonic_ms())

    def cancel(self, owner_name: str, job_id: str, reason: str = "client") -> Job:
        """End a job now; its slot is free at the engine's next step. A job that has ended stays as it is.

        Raises JobNotFound.
        """
        job = self.get(owner_name, job_id)
        if not job.ended:
            # A terminal event withdraws the job from the engine, see `_retire`.
            self._append(job, Cancelled(reason, job.usage(self._clock.monotonic_ms())))
        return job

    def prioritize(self, owner_name: str, job_id: str, priority: int) -> Job:
        """Change the priority (0 to 9) of a job, as far as its key may; it matters while the job waits.

        Raises JobNotFound.
        """
        job = self.get(owner_name, job_id)
        job.priority = min(priority, job.owner.allowance.priority_max)
        self._handing.prioritize(job)
        return job

    def watch(self, job: Job, wake: Callable[[], None]) -> None:
        """Follow a job: `wake` is called after every append. A watched job is never abandoned."""
        job.log.add_waker(wake)
        job.watchers += 1

    def unwatch(self, job: Job, wake: Callable[[], None]) -> None:
        """Stop following a job."""
        job.log.remove_waker(wake)
        job.watchers -= 1
        job.unwatched_since = self._clock.monotonic_ms()
        self._agenda.plan(job)

    def touch(self, job: Job) -> None:
        """Count a job as just watched: a client asked about it without following it."""
        job.unwatched_since = self._clock.monotonic_ms()

    # ---- time and shutdown -------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """End jobs past their deadline, cancel abandoned ones, remark on prompts that are read late, forget old logs.

        Call it several times a second: it looks only at what is due.
        """
        now = self._clock.monotonic_ms()
        for job, event in self._agenda.happenings(now):
            job.preparing = job.preparing or isinstance(event, Note)
            self._append(job, event)
        for job in self._registry.pop_due(now):
            job.log.forget()

    def drain(self, on_idle: Callable[[], None]) -> None:
        """Accept no new jobs from now on; call `on_idle` as soon as no job is live, maybe at once."""
        self.draining = True
        self._on_idle.append(on_idle)
        self._notify_if_idle()

    def cancel_all(self, reason: str) -> None:
        """Cancel every live job."""
        for job in list(self._live.values()):
            self._append(job, Cancelled(reason, job.usage(self._clock.monotonic_ms())))

    # ---- events of the engine (the broker's sink) --------------------------------------------------------------------

    def on_batch(self, batch: Batch) -> None:
        """Write one engine step into the logs. Events under a lease that is over (cancelled, resumed) are dropped."""
        self._handing.suspect(batch.handling)
        leases = self._handing.leases
        # What happens in one step happens at one time.
        self._step_at = self._now()
        for event in batch.events:
            held = leases.get(event.lease)
            if held is not None:
                self._on_event(*held, event)
        self._news.pass_tokens_on()
        self._step_at = None

    def on_prepared(self, lease: str, prompt_tokens: int, ids: bytes) -> None:
        """Record the ids of a prompt, and hand over the choices that waited for them."""
        job, _ = self._handing.leases.get(lease, (None, None))
        if job is not None and not job.prompt_ids:
            job.prompt_ids = ids
            charged, job.tokens_charged = job.tokens_charged, job.request.tokens_max(prompt_tokens)
            self._admission.on_tokenized(job.owner, charged, job.tokens_charged, self._clock.monotonic_ms())
            self._append(job, Tokenized(prompt_tokens, ids))
            self._handing.submit_siblings(job)

    def on_refused(self, lease: str, error: Problem) -> None:
        """Fail a job that can never run."""
        job, _ = self._handing.leases.get(lease, (None, None))
        if job is not None:
            self._fail(job, error)

    def on_lost(self, reason: str) -> None:
        """Hand unfinished jobs over again, each at its next token: the engine died with everything in it.

        A job that only waited shows nothing of it.
        """
        suspect = self._handing.pop_suspect()
        for job in list(self._live.values()):
            if is_blamed(job, suspect):
                job.deaths += 1
            if job.deaths > self._settings.engine_deaths_per_job_max:
                why = f"The engine died {job.deaths} times in a row on this job, without a token: {reason}."
                self._fail(job, EngineFailed(why).problem())
                continue
            if job.runs or job.holds(suspect):
                self._append(job, remarks.restarted(reason))
                self._append(job, Resumed(job.log.attempt + 1))
            self._handing.submit_open(job)

    def on_state(self, state: EngineState) -> None:
        """Fail all jobs, with the reason, when there is no usable model: none of them can go on."""
        now = self._clock.monotonic_ms()
        self._agenda.follow_engine(ready=state.phase == "ready", now_ms=now, live=self._live.values())
        if state.phase == "failed" and state.error is not None:
            for job in list(self._live.values()):
                self._fail(job, state.error)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def _start(self, owner: Principal, job_id: str, request: JobRequest, correlation: Correlation) -> Job:
        job = Job.new(owner, job_id, request, correlation, self._clock, self._new_id)
        self._registry.add(job)
        self._agenda.plan(job)
        self._admission.on_created(owner)
        self._admission.on_queued(owner, job.tokens_charged)
        if request.script:
            self._play(job)
        else:
            job.position = self._admission.waiting_jobs
            self._append(job, Queued(job.position))
            self._handing.submit_open(job)
        return job

    def _play(self, job: Job) -> None:
        """Write the events of a job that needs no engine, and its end."""
        for event in job.request.script:
            self._append(job, event)
        job.choices[0].start(0, 0)
        job.choices[0].end("stop")
        self._finish(job)

    def _on_event(self, job: Job, choice: Choice, event: WorkEvent) -> None:
        match event:
            case Delta():
                self._on_delta(job, choice, event)
            case Prefilled():
                if choice.record_prefill(event.done, event.total):
                    self._append(job, Progress(event.done, event.total))
            case Placed():
                self._on_placed(job, choice, event)
            case Started():
                choice.start(event.prompt_tokens, event.cached_tokens)
                if job.state == "queued":
                    self._append(job, Admitted(event.prompt_tokens, event.cached_tokens))
            case Paused():
                choice.pause()
                if not job.runs:
                    self._append(job, Preempted("its next tokens have no room in the KV cache now"))
            case Refused() | Broke():
                self._fail(job, event.error)

    def _on_placed(self, job: Job, choice: Choice, event: Placed) -> None:
        """Record a new position; a new estimate alone is not worth a record."""
        if job.state == "queued" and choice.index == 0:
            moved = event.position != job.position
            job.position, job.eta_ms = event.position, event.eta_ms
            if moved:
                self._append(job, Queued(event.position, event.eta_ms))

    def _on_delta(self, job: Job, choice: Choice, delta: Delta) -> None:
        if delta.ids or delta.text:
            choice.ids.extend(delta.ids)
            job.deaths = 0
            self._append_token(
                job, Token(delta.text, delta.ids, choice.index, "text", delta.logprobs, delta.top_logprobs)
            )
        if delta.finish is not None:
            choice.end(delta.finish, delta.stop_sequence)
            self._handing.release(choice)
            if all(other.ended for other in job.choices):
                self._finish(job)

    def _finish(self, job: Job) -> None:
        usage = job.usage(self._clock.monotonic_ms())
        self._append(job, remarks.completed(usage))
        self._append(job, job.finished(usage))

    def _fail(self, job: Job, error: Problem) -> None:
        self._append(job, Failed(error, job.usage(self._clock.monotonic_ms())))

    def _append_token(self, job: Job, token: Token) -> None:
        """Append a token. Observers and readers are told with the rest of its step."""
        assert job.state == "running", f"a token cannot come to a job that is {job.state}"
        now, at_ms = self._now()
        self._news.add_token(job, job.log.append_token(token, at_ms))
        if job.timing.record_token(now):
            self._append(job, FirstToken(round(now - job.timing.created)))

    def _append(self, job: Job, event: Event) -> None:
        """Append any other event: the one place where a state changes."""
        self._news.pass_tokens_on()
        now, at_ms = self._now()
        before, job.state = job.state, next_state(job.state, event)
        if isinstance(event, Admitted) and job.timing.admitted is None:
            job.timing.admitted = now
        if (before == "queued") != (job.state == "queued"):
            job.position = job.eta_ms = None
            count = self._admission.on_queued if job.state == "queued" else self._admission.on_dequeued
            count(job.owner, job.tokens_charged)
        log = job.log
        record = log.append(event, at_ms)
        self._news.pass_on(job, record)
        if log.ended:
            assert isinstance(event, TERMINAL)
            self._retire(job, event.usage, now)

    def _now(self) -> tuple[float, int]:
        """Return the time of the step that is being written, else the time now: monotonic and wall, in ms."""
        return self._step_at or (self._clock.monotonic_ms(), self._clock.wall_ms())

    def _retire(self, job: Job, usage: Usage, now_ms: float) -> None:
        """Withdraw an ended job from the engine and start its retention."""
        self._handing.withdraw(job)
        self._agenda.drop(job)
        self._admission.on_ended(job.owner, job.tokens_charged, usage, now_ms)
        job.drop_request()
        for forgotten in self._registry.retire(job, now_ms):
            forgotten.log.forget()
        self._notify_if_idle()

    def _notify_if_idle(self) -> None:
        if self.draining and not self._live:
            on_idle, self._on_idle = self._on_idle, []
            for notify in on_idle:
                notify()
