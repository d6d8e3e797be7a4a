"""One job: its request, its log, and all that the gateway needs to hand it to an engine again."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from worker.engines.base import Generation
from worker.errors import DeadlineExceeded
from worker.events import Cancelled, Event, Expired, Finished, FinishReason, Token, Usage
from worker.jobs import remarks
from worker.jobs.clock import Clock
from worker.jobs.correlation import UNKNOWN, Correlation
from worker.jobs.lifecycle import JobState, is_terminal
from worker.jobs.limits.principals import Principal
from worker.jobs.log import JobLog
from worker.jobs.places import Place, next_place
from worker.operations.base import JobRequest
from worker.requests import Prompt, Sampling

PREPARING_AFTER_MS = 250
"""A prompt that is not read by then is worth a remark: most are within a few ms."""

PROGRESS_STEP = 0.05
"""Prefill is reported in steps of at least this share of the prompt."""

JOB_BYTES = 1300
"""Rough memory of an ended job besides its log: itself, its owner, and its places in the books of the service."""

CHOICE_BYTES = 200
"""Rough memory of a choice besides its tokens."""

NO_PROMPT, NO_SAMPLING = Prompt(), Sampling()
"""What ended jobs have of them."""


@dataclass(slots=True)
class Choice:
    """One sequence of a job and what it has produced so far. `lease` names the attempt that may add to it.

    `prefilled` is the share of the prompt that was reported last, None before the first report.
    """

    index: int
    lease: str = ""
    place: Place = "waiting"
    ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled: float | None = None
    finish: FinishReason | None = None
    stop_sequence: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the choice is complete."""
        return self.place == "ended"

    def wait(self, lease: str) -> None:
        """Wait for a slot under a new lease."""
        self.place = next_place(self.place, "wait")
        self.lease, self.prefilled = lease, None

    def start(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Hold a slot. A paused choice finds only its own tokens in the cache: that saved it nothing."""
        before, self.place = self.place, next_place(self.place, "start")
        if before != "paused":
            self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens

    def record_prefill(self, done: int, total: int) -> bool:
        """Record prefill. Returns whether there is progress to report: several chunks, and steps of some size.

        The choices of a job share its prompt, so the first one reports for all.
        """
        share = done / total
        if self.index or (share >= 1 and self.prefilled is None):
            return False
        if share < 1 and share - (self.prefilled or 0.0) < PROGRESS_STEP:
            return False
        self.prefilled = share
        return True

    def pause(self) -> None:
        """Give the slot back for a while; its prefill starts over."""
        self.place = next_place(self.place, "pause")
        self.prefilled = None

    def end(self, finish: FinishReason, stop_sequence: str | None = None) -> None:
        """End for a reason."""
        self.place = next_place(self.place, "end")
        self.finish, self.stop_sequence = finish, stop_sequence


@dataclass(slots=True)
class Timing:
    """When things happened, in monotonic milliseconds; None before they did."""

    created: float
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def record_token(self, now_ms: float) -> bool:
        """Record when a token comes. Returns whether it is the first."""
        self.last_token = now_ms
        if self.first_token is not None:
            return False
        self.first_token = now_ms
        return True


@dataclass(slots=True, eq=False)
class Job:
    """A job and its log. Everybody may read it; only the service changes it.

    `deaths` counts the engines in a row that died while they had this job and it made no progress. `prompt_ids` are
    those of `events.Tokenized`, empty until the prompt is read. `number` is its place among all jobs, in the order of
    their creation. `priority` is what was asked for, as far as its owner may. `tokens_charged` is what its account is
    charged, and what it counts for in the queue: an estimate until then. `preparing`: its readers know that reading
    takes long. `due_ms` belongs to the agenda.
    """

    id: str
    owner: Principal
    request: JobRequest
    log: JobLog
    created_at_ms: int
    timing: Timing
    seed: int
    priority: int
    state: JobState = "queued"
    position: int | None = None
    eta_ms: int | None = None
    choices: list[Choice] = field(default_factory=list)
    watchers: int = 0
    unwatched_since: float = 0.0
    deaths: int = 0
    prompt_ids: bytes = b""
    tokens_charged: int = 0
    preparing: bool = False
    due_ms: float = math.inf
    number: int = 0
    correlation: Correlation = UNKNOWN

    @classmethod
    def new(
        cls,
        owner: Principal,
        job_id: str,
        request: JobRequest,
        correlation: Correlation,
        clock: Clock,
        new_id: Callable[[], uuid.UUID],
    ) -> Job:
        """Return a job that begins now, with an empty log."""
        now = clock.monotonic_ms()
        return cls(
            id=job_id,
            owner=owner,
            request=request,
            log=JobLog(epoch=new_id().hex[:8], shared=request.script_shared),
            created_at_ms=clock.wall_ms(),
            timing=Timing(created=now),
            seed=new_id().int % (1 << 64) if request.seed is None else request.seed,
            priority=min(request.priority, owner.allowance.priority_max),
            choices=[Choice(index) for index in range(request.n)],
            unwatched_since=now,
            tokens_charged=request.tokens_estimate,
            correlation=correlation,
        )

    @property
    def owner_name(self) -> str:
        """The name of its owner."""
        return self.owner.name

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to the job."""
        return is_terminal(self.state)

    @property
    def runs(self) -> bool:
        """Whether it holds a slot now."""
        return any(choice.place == "running" for choice in self.choices)

    def holds(self, lease: str) -> bool:
        """Return whether this is the latest lease of one of its choices; nothing is the lease of none."""
        return lease != "" and any(choice.lease == lease for choice in self.choices)

    def due(self, now_ms: float, orphan_ms: float, ready_at_ms: float) -> Event | None:
        """Return what the time alone brings about: the end of a live job, or a remark that its prompt is read late."""
        limit = self.request.deadline_ms
        if limit and now_ms - self.timing.created >= limit:
            error = DeadlineExceeded(f"The job did not end within its deadline of {limit} ms.")
            return Expired(error.problem(), self.usage(now_ms))
        if not self.watchers and not self.request.detach and now_ms - self.unwatched_since >= orphan_ms:
            return Cancelled("abandoned", self.usage(now_ms))
        return remarks.preparing() if now_ms >= self._read_late_ms(ready_at_ms) else None

    def next_due_ms(self, orphan_ms: float, ready_at_ms: float) -> float:
        """Return when that will be next, if nothing else happens; infinity is never."""
        deadline_ms = self.request.deadline_ms
        return min(
            self.timing.created + deadline_ms if deadline_ms else math.inf,
            math.inf if self.watchers or self.request.detach else self.unwatched_since + orphan_ms,
            self._read_late_ms(ready_at_ms),
        )

    def _read_late_ms(self, ready_at_ms: float) -> float:
        """Return from when on reading the prompt takes long; never once it is read, or once a remark says so.

        Reading waits until an engine is ready.
        """
        if self.prompt_ids or self.preparing or self.state != "queued":
            return math.inf
        return max(self.timing.created, ready_at_ms) + PREPARING_AFTER_MS

    def text(self, index: int = 0) -> str:
        """Return all text of one choice so far."""
        events = (record.event for record in self.log.records)
        return "".join(event.text for event in events if isinstance(event, Token) and event.index == index)

    def generation(self, choice: Choice) -> Generation:
        """Return what an engine needs to go on with `choice` under its current lease."""
        return self.request.generation(choice.lease, self.seed, choice.index, tuple(choice.ids), self.prompt_ids)

    def drop_request(self) -> None:
        """Drop the prompt, the sampling settings and the script, which may be large: an ended job needs none."""
        self.request = msgspec.structs.replace(self.request, prompt=NO_PROMPT, sampling=NO_SAMPLING, script=())

    @property
    def kept_bytes(self) -> int:
        """About the memory that the job takes while it is kept after its end."""
        names = (self.id, self.owner.name, self.correlation.correlation_id, self.correlation.traceparent)
        return JOB_BYTES + CHOICE_BYTES * len(self.choices) + sum(map(sys.getsizeof, names)) + self.log.bytes

    def usage(self, now_ms: float) -> Usage:
        """Return what the job has consumed until `now_ms` (monotonic)."""
        timing, tokens = self.timing, sum(len(choice.ids) for choice in self.choices)
        rate = None
        first, last = timing.first_token, timing.last_token
        if tokens > 1 and first is not None and last is not None and last > first:
            rate = round((tokens - 1) * 1000 / (last - first), 2)
        return Usage(
            prompt_tokens=max(choice.prompt_tokens for choice in self.choices),
            completion_tokens=tokens,
            cached_tokens=max(choice.cached_tokens for choice in self.choices),
            queue_ms=round((timing.admitted if timing.admitted is not None else now_ms) - timing.created),
            total_ms=round(now_ms - timing.created),
            ttft_ms=None if timing.first_token is None else round(timing.first_token - timing.created),
            tokens_per_s=rate,
        )

    def finished(self, usage: Usage) -> Finished:
        """Return the end of a job whose choices have all ended."""
        reasons = tuple(choice.finish for choice in self.choices if choice.finish is not None)
        return Finished(
            finish_reason=reasons[0],
            usage=usage,
            stop_sequence=self.choices[0].stop_sequence,
            finish_reasons=reasons if len(reasons) > 1 else (),
        )
