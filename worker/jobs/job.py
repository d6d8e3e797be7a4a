"""One job: its request, its log, and what the gateway must know to hand it to an engine again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from worker.engines.base import Generation
from worker.events import Admitted, Event, Finished, FinishReason, Token, Usage
from worker.jobs.correlation import UNKNOWN, Correlation
from worker.jobs.lifecycle import State, is_terminal
from worker.jobs.limits.principals import Principal
from worker.jobs.log import JobLog
from worker.operations.base import JobRequest
from worker.requests import Prompt, Sampling


@dataclass(slots=True)
class Choice:
    """One sequence of a job: what it has produced so far. `lease` names the attempt at it that may add to it."""

    index: int
    lease: str = ""
    place: Literal["waiting", "running", "paused", "ended"] = "waiting"
    ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled: float = -1.0
    finish: FinishReason | None = None
    stop_sequence: str | None = None

    def started(self, prompt_tokens: int, cached_tokens: int) -> None:
        """It holds a slot. What a paused one finds in the cache is its own, and saved it nothing."""
        if self.place != "paused":
            self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens
        self.place = "running"


@dataclass(slots=True)
class Timing:
    """When things happened, in monotonic milliseconds; None before they did."""

    created: float
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    def take(self, event: Event, now_ms: float) -> bool:
        """Note when an event happens; tell whether it is the first token."""
        if isinstance(event, Token):
            self.last_token = now_ms
            if self.first_token is None:
                self.first_token = now_ms
                return True
        elif isinstance(event, Admitted) and self.admitted is None:
            self.admitted = now_ms
        return False


@dataclass(slots=True, eq=False)
class Job:
    """A job and its log. Everybody may read it; only the service changes it."""

    id: str
    owner: Principal
    request: JobRequest
    log: JobLog
    created_at_ms: int
    timing: Timing
    seed: int
    priority: int
    state: State = "queued"
    position: int | None = None
    eta_ms: int | None = None
    choices: list[Choice] = field(default_factory=list)
    watchers: int = 0
    unwatched_since: float = 0.0
    # How often in a row the engine died while this job was in it and made no progress.
    deaths: int = 0
    correlation: Correlation = UNKNOWN

    @property
    def owner_name(self) -> str:
        """The name of its owner."""
        return self.owner.name

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return is_terminal(self.state)

    @property
    def runs(self) -> bool:
        """Whether it holds a slot now."""
        return any(choice.place == "running" for choice in self.choices)

    def text(self, index: int = 0) -> str:
        """Return all text of one choice so far."""
        events = (record.event for record in self.log.records)
        return "".join(event.text for event in events if isinstance(event, Token) and event.index == index)

    def generation(self, choice: Choice) -> Generation:
        """Return what an engine needs to go on with `choice` under its current lease."""
        return self.request.generation(choice.lease, self.seed, choice.index, tuple(choice.ids))

    def pause(self, choice: Choice) -> bool:
        """A choice gave its slot back for a while, its prefill will begin anew; tell if the job holds no slot now."""
        choice.place, choice.prefilled = "paused", -1.0
        return not self.runs

    def put_away(self) -> None:
        """It has ended and is handed over no more: what it was asked, which may be large, is dropped."""
        self.request = msgspec.structs.replace(self.request, prompt=Prompt(), sampling=Sampling())

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
        """Return the end of a job all of whose choices have ended."""
        reasons = tuple(choice.finish for choice in self.choices if choice.finish is not None)
        return Finished(
            finish_reason=reasons[0],
            usage=usage,
            stop_sequence=self.choices[0].stop_sequence,
            finish_reasons=reasons if len(reasons) > 1 else (),
        )
