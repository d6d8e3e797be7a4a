"""The jobs of this worker: creates them, hands them to the broker, and is the only writer of their logs.

It runs on the gateway's event loop and never waits. Clients' commands come from above (`create`, `cancel`, ...), the
engine's events from below (it is the broker's sink), and time through `sweep`, which the app calls every so often.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import TypeAlias

from worker.brokers.base import Broker, EngineState
from worker.config import Settings
from worker.engines.base import Broke, Delta, Paused, Prefilled
from worker.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    IdempotencyMismatch,
    JobLost,
    JobNotFound,
    ModelError,
    Problem,
)
from worker.events import (
    TERMINAL,
    Admitted,
    Cancelled,
    Event,
    Expired,
    Failed,
    FirstToken,
    Preempted,
    Progress,
    Queued,
    Record,
    Resumed,
    Token,
    Usage,
)
from worker.jobs import remarks
from worker.jobs.clock import Clock
from worker.jobs.correlation import UNKNOWN, Correlation
from worker.jobs.job import Choice, Job, Timing
from worker.jobs.lifecycle import follow
from worker.jobs.limits.admission import Admission
from worker.jobs.limits.principals import Principal
from worker.jobs.limits.retention import Retention
from worker.jobs.log import JobLog
from worker.operations.base import JobRequest
from worker.scheduler.works import Batch, Placed, Refused, Started, Work, WorkEvent

Observer: TypeAlias = Callable[[Job, Record], None]
"""Called after every append, with the job and the new record. Must not raise, must not wait."""

SOLO_AFTER_DEATHS = 2
"""A job in which the engine died this often in a row is tried alone, so that it takes nobody else along."""

PROGRESS_STEP = 0.05
"""Prefill is narrated in steps of at least this share of the prompt."""


class Jobs:
    """All jobs by (owner_name, id). Commands raise errors of the tree; a principal never sees another's jobs."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        clock: Clock,
        observers: Iterable[Observer] = (),
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._observers = tuple(observers)
        self._new_id = new_id
        self._jobs: dict[tuple[str, str], Job] = {}
        self._live: dict[tuple[str, str], Job] = {}
        self._leases: dict[str, tuple[Job, Choice]] = {}
        self._lease_count = 0
        # The lease that the engine had in hand when it was last heard of.
        self._handled = ""
        self._admission = Admission(settings)
        self._retention = Retention(settings.retention_s * 1000, settings.retention_bytes_max)
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
        """Create a job, or find the one that this very request created before; return it and whether it was found.

        Raises IdempotencyMismatch for a taken id, JobLost if a client resumes a job that is unknown, Draining,
        ModelError, QueueFull, TooManyJobs or RateLimited if no new job is taken now.
        """
        known = self._jobs.get((owner.name, job_id)) if job_id else None
        if known is not None:
            if known.request.fingerprint != request.fingerprint:
                raise IdempotencyMismatch(f"Job {known.id} exists with another body. Choose a new job_id.")
            return known, True
        if resuming:
            raise JobLost(f"Job {job_id} is not known here any more. Create it anew, without `after`, to run it again.")
        if self.draining:
            raise Draining("This worker is shutting down. Try again soon.", retry_after_ms=2000)
        state = self._broker.state
        if not request.script:
            if state.phase == "failed" and state.error is not None:
                raise ModelError(state.error.detail)
            self._admission.check(owner, request, state.stats, self._clock.monotonic_ms())
        return self._start(owner, job_id or f"job-{self._new_id()}", request, correlation), False

    def get(self, owner_name: str, job_id: str) -> Job:
        """Return a job. Raises JobNotFound."""
        job = self._jobs.get((owner_name, job_id))
        if job is None:
            raise JobNotFound(f"There is no job {job_id}. It may have been forgotten after its retention time.")
        return job

    def list(self, owner_name: str | None) -> list[Job]:
        """Return the caller's jobs, oldest first; None stands for everybody's."""
        return [job for (owner, _), job in self._jobs.items() if owner_name in (owner, None)]

    def cancel(self, owner_name: str, job_id: str, reason: str = "client") -> Job:
        """End a job now; its slot is free at the engine's next step. A job that has ended stays as it is.

        Raises JobNotFound.
        """
        job = self.get(owner_name, job_id)
        if not job.ended:
            self._append(job, Cancelled(reason, job.usage(self._clock.monotonic_ms())))
        return job

    def prioritize(self, owner_name: str, job_id: str, priority: int) -> Job:
        """Change the priority (0 to 9) of a job; it matters while the job waits. Raises JobNotFound."""
        job = self.get(owner_name, job_id)
        job.priority = priority
        for choice in job.choices:
            self._broker.prioritize(choice.lease, priority)
        return job

    def watch(self, job: Job, wake: Callable[[], None]) -> None:
        """Follow a job: `wake` is called after every append. A watched job is never abandoned."""
        job.log.add_waker(wake)
        job.watchers += 1

    def unwatch(self, job: Job, wake: Callable[[], None]) -> None:
        """Stop to follow a job."""
        job.log.remove_waker(wake)
        job.watchers -= 1
        job.unwatched_since = self._clock.monotonic_ms()

    def touch(self, job: Job) -> None:
        """A client asked about a job without following it: it is not abandoned."""
        job.unwatched_since = self._clock.monotonic_ms()

    # ---- time and shutdown -------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """End jobs past their deadline, cancel abandoned ones, forget old logs. Call it several times a second."""
        now = self._clock.monotonic_ms()
        orphan_ms = self._settings.orphan_ttl_s * 1000
        for job in list(self._live.values()):
            limit = job.request.deadline_ms
            if limit and now - job.timing.created >= limit:
                error = DeadlineExceeded(f"The job did not end within its deadline of {limit} ms.")
                self._append(job, Expired(error.problem(), job.usage(now)))
            elif not job.watchers and not job.request.detach and now - job.unwatched_since >= orphan_ms:
                self._append(job, Cancelled("abandoned", job.usage(now)))
        for key in self._retention.due(now):
            self._jobs.pop(key).log.forget()

    def drain(self, on_idle: Callable[[], None]) -> None:
        """Take no new jobs from now on; call `on_idle` as soon as no job is live, maybe at once."""
        self.draining = True
        self._on_idle.append(on_idle)
        self._tell_if_idle()

    def cancel_all(self, reason: str) -> None:
        """Cancel every live job."""
        for job in list(self._live.values()):
            self._append(job, Cancelled(reason, job.usage(self._clock.monotonic_ms())))

    # ---- events of the engine (the broker's sink) --------------------------------------------------------------------

    def on_batch(self, batch: Batch) -> None:
        """Write one engine step into the logs. Events of leases that are over (cancelled, resumed) are dropped here."""
        self._handled = batch.handling
        for event in batch.events:
            held = self._leases.get(event.lease)
            if held is not None:
                self._on_event(*held, event)

    def on_lost(self, reason: str) -> None:
        """The engine died with everything in it: hand over again what is unfinished, each at its next token.

        What it had in hand is to blame; if that was nothing, everything that ran may be.
        """
        handled, self._handled = self._handled, ""
        for job in list(self._live.values()):
            in_hand = any(choice.lease == handled for choice in job.choices)
            job.deaths += in_hand or (job.runs and not handled)
            if job.deaths > self._settings.engine_deaths_per_job_max:
                why = f"The engine died {job.deaths} times in a row on this job, without a token: {reason}."
                self._fail(job, EngineFailed(why).problem())
                continue
            if in_hand or job.runs:
                self._append(job, remarks.restarted(reason))
                self._append(job, Resumed(job.log.attempt + 1))
            for choice in job.choices:
                if choice.finish is None:
                    self._submit(job, choice)

    def on_state(self, state: EngineState) -> None:
        """Without a usable model no job can go on: they fail with the reason, rather than wait for ever."""
        if state.phase == "failed" and state.error is not None:
            for job in list(self._live.values()):
                self._fail(job, state.error)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def _start(self, owner: Principal, job_id: str, request: JobRequest, correlation: Correlation) -> Job:
        now = self._clock.monotonic_ms()
        job = Job(
            id=job_id,
            owner=owner,
            request=request,
            log=JobLog(epoch=self._new_id().hex[:8]),
            created_at_ms=self._clock.wall_ms(),
            timing=Timing(created=now),
            seed=self._new_id().int % (1 << 64) if request.seed is None else request.seed,
            priority=request.priority,
            choices=[Choice(index) for index in range(request.n)],
            unwatched_since=now,
            correlation=correlation,
        )
        key = (owner.name, job_id)
        self._jobs[key] = self._live[key] = job
        self._admission.entered(owner)
        self._admission.waits(request)
        if request.script:
            self._play(job)
        else:
            job.position = self._admission.waiting_jobs
            self._append(job, Queued(job.position))
            for choice in job.choices:
                self._submit(job, choice)
        return job

    def _play(self, job: Job) -> None:
        """Write the events of a job that needs no engine, and its end."""
        for event in job.request.script:
            self._append(job, event)
        job.choices[0].finish = "stop"
        self._finish(job)

    def _submit(self, job: Job, choice: Choice) -> None:
        """Hand a choice to the broker under a new lease; what the old lease still says is not heard any more."""
        self._leases.pop(choice.lease, None)
        self._lease_count += 1
        choice.lease = str(self._lease_count)
        choice.place, choice.prefilled = "waiting", -1.0
        self._leases[choice.lease] = (job, choice)
        self._broker.submit(
            Work(
                generation=job.generation(choice),
                account=job.owner.account,
                weight=job.owner.allowance.weight,
                priority=job.priority,
                solo=job.deaths >= SOLO_AFTER_DEATHS,
            )
        )

    def _on_event(self, job: Job, choice: Choice, event: WorkEvent) -> None:
        match event:
            case Delta():
                self._on_delta(job, choice, event)
            case Prefilled():
                self._on_prefilled(job, choice, event)
            case Placed():
                self._on_placed(job, choice, event)
            case Started():
                choice.started(event.prompt_tokens, event.cached_tokens)
                if job.state == "queued":
                    self._append(job, Admitted(event.prompt_tokens, event.cached_tokens))
            case Paused():
                if job.pause(choice):
                    self._append(job, Preempted("its next tokens have no room in the KV cache now"))
            case Refused():
                self._fail(job, event.error)
            case Broke():
                self._fail(job, EngineFailed(f"The engine failed on this job: {event.reason}.").problem())

    def _on_placed(self, job: Job, choice: Choice, event: Placed) -> None:
        """Narrate a new position; a new estimate alone is not worth a sentence."""
        if job.state == "queued" and choice.index == 0:
            moved = event.position != job.position
            job.position, job.eta_ms = event.position, event.eta_ms
            if moved:
                self._append(job, Queued(event.position, event.eta_ms))

    def _on_prefilled(self, job: Job, choice: Choice, event: Prefilled) -> None:
        """Narrate prefill where there is something to see: several chunks, and steps that are not too small."""
        share = event.done / event.total
        if choice.prefilled < 0 and event.done >= event.total:
            return
        if choice.index == 0 and (share - max(choice.prefilled, 0) >= PROGRESS_STEP or share >= 1):
            choice.prefilled = share
            self._append(job, Progress(event.done, event.total))

    def _on_delta(self, job: Job, choice: Choice, delta: Delta) -> None:
        if delta.ids or delta.text:
            choice.ids.extend(delta.ids)
            job.deaths = 0
            token = Token(delta.text, delta.ids, choice.index, "text", delta.logprobs, delta.top_logprobs)
            self._append(job, token)
        if delta.finish is not None:
            choice.place, choice.finish, choice.stop_sequence = "ended", delta.finish, delta.stop_sequence
            del self._leases[choice.lease]
            if all(other.finish is not None for other in job.choices):
                self._finish(job)

    def _finish(self, job: Job) -> None:
        usage = job.usage(self._clock.monotonic_ms())
        self._append(job, remarks.completed(usage))
        self._append(job, job.finished(usage))

    def _fail(self, job: Job, error: Problem) -> None:
        self._append(job, Failed(error, job.usage(self._clock.monotonic_ms())))

    def _append(self, job: Job, event: Event) -> None:
        """The one place where a log grows, a state changes and everybody hears of it."""
        now = self._clock.monotonic_ms()
        before, job.state = job.state, follow(job.state, event)
        first_token = job.timing.take(event, now)
        if (before == "queued") != (job.state == "queued"):
            job.position = job.eta_ms = None
            count = self._admission.waits if job.state == "queued" else self._admission.waits_no_more
            count(job.request)
        log = job.log
        record = log.append(event, self._clock.wall_ms())
        for observer in self._observers:
            observer(job, record)
        if first_token:
            self._append(job, FirstToken(round(now - job.timing.created)))
        if log.ended:
            assert isinstance(event, TERMINAL)
            self._leave(job, event.usage, now)

    def _leave(self, job: Job, usage: Usage, now_ms: float) -> None:
        """A job ended: give back its leases, and start to count its retention."""
        for choice in job.choices:
            if self._leases.pop(choice.lease, None) is not None:
                self._broker.cancel(choice.lease)
        key = (job.owner_name, job.id)
        del self._live[key]
        self._admission.left(job.owner, job.request, usage, now_ms)
        job.put_away()
        self._retention.add(key, job.log.bytes, now_ms)
        self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        if self.draining and not self._live:
            on_idle, self._on_idle = self._on_idle, []
            for tell in on_idle:
                tell()
