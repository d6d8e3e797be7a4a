"""Admission control: refuses a job early, with the time after which to try again."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from worker.config import Settings
from worker.errors import QueueFull, TooManyJobs
from worker.events import Usage
from worker.jobs.limits.principals import Principal
from worker.jobs.limits.quota import Quotas, Rate
from worker.operations.base import JobRequest
from worker.scheduler.works import Stats

RETRY_AFTER_MIN_MS = 1000
RETRY_AFTER_MAX_MS = 60_000
RETRY_AFTER_UNKNOWN_MS = 5000
"""The advice while no decode rate has been measured."""

SHARE = "While others have keys, one account may hold half of it."


@dataclass
class _Waiting:
    """What waits for a slot."""

    jobs: int = 0
    tokens: int = 0


class Admission:
    """Counts live jobs and waiting work against the limits. Pure bookkeeping: the service reports every change.

    `waiting_jobs` and `waiting_tokens` are those of all jobs that wait for a slot. All else is counted by account: the
    users of a key share what the key has.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._live: Counter[str] = Counter()
        self._waiting: defaultdict[str, _Waiting] = defaultdict(_Waiting)
        self._quotas = Quotas()
        self.waiting_jobs = 0
        self.waiting_tokens = 0

    def admit(self, owner: Principal, request: JobRequest, stats: Stats | None, now_ms: float) -> None:
        """Charge a new job to its account's quota, or refuse it. A job with a script ends at once, and never waits.

        Raises TooManyJobs and QueueFull, with a retry time from measured rates, and RateLimited, with the exact one.
        """
        live, retry_after_ms = self._live[owner.account], self._retry_after_ms(stats)
        if live >= (owner.allowance.jobs_max or self._settings.jobs_per_account_max):
            raise TooManyJobs(
                f"You have {live} live jobs, the limit for one account. Wait for one to end.",
                retry_after_ms=retry_after_ms,
            )
        if not request.script:
            self._check_share(owner, request.tokens_estimate, retry_after_ms)
            self._check_queue(request.tokens_estimate, retry_after_ms)
        # Last, because it charges the account.
        amounts = {"jobs": 1, "tokens": request.tokens_estimate}
        self._quotas.charge(owner.account, self._limits(owner), amounts, now_ms)

    def rates(self, owner: Principal, now_ms: float) -> tuple[Rate, ...]:
        """Return what is left of each limit per minute of an owner's account."""
        return self._quotas.rates(owner.account, self._limits(owner), now_ms)

    def on_created(self, owner: Principal) -> None:
        """Count a new job as live."""
        self._live[owner.account] += 1

    def on_tokenized(self, owner: Principal, charged: int, exact: int, now_ms: float) -> None:
        """Correct what was charged for a waiting job, an estimate, to what it may use now that its prompt is read."""
        self.waiting_tokens += exact - charged
        self._waiting[owner.account].tokens += exact - charged
        self._quotas.settle(owner.account, "tokens", exact - charged, now_ms)

    def on_ended(self, owner: Principal, charged: int, usage: Usage, now_ms: float) -> None:
        """Count a job as ended, and correct what was charged for it to what it used."""
        self._live[owner.account] -= 1
        if not self._live[owner.account]:
            del self._live[owner.account]
        used = usage.prompt_tokens + usage.completion_tokens
        self._quotas.settle(owner.account, "tokens", used - charged, now_ms)

    def on_queued(self, owner: Principal, tokens: int) -> None:
        """Count a job that waits for a slot, and may occupy this many tokens."""
        self.waiting_jobs += 1
        self.waiting_tokens += tokens
        waiting = self._waiting[owner.account]
        waiting.jobs += 1
        waiting.tokens += tokens

    def on_dequeued(self, owner: Principal, tokens: int) -> None:
        """Count a job out of the queue: it has a slot, or ended there."""
        self.waiting_jobs -= 1
        self.waiting_tokens -= tokens
        waiting = self._waiting[owner.account]
        waiting.jobs -= 1
        waiting.tokens -= tokens
        if not waiting.jobs:
            del self._waiting[owner.account]

    def _limits(self, owner: Principal) -> dict[str, int]:
        """Return the limits per minute of an account, by unit. 0 is none."""
        allowance, settings = owner.allowance, self._settings
        return {
            "jobs": allowance.jobs_per_minute_max or settings.jobs_per_minute_max,
            "tokens": allowance.tokens_per_minute_max or settings.tokens_per_minute_max,
        }

    def _check_share(self, owner: Principal, tokens: int, retry_after_ms: int) -> None:
        """Raise QueueFull if the rest of the queue is kept for others. An account may always have one job there."""
        settings, share, waiting = self._settings, owner.allowance.queue_share, self._waiting.get(owner.account)
        if share >= 1 or waiting is None:
            return
        if waiting.jobs >= int(settings.queue_jobs_max * share):
            raise QueueFull(
                f"{waiting.jobs} of your jobs wait, and the queue has room for {settings.queue_jobs_max}. {SHARE} "
                "Wait for one of yours to begin.",
                retry_after_ms=retry_after_ms,
            )
        if waiting.tokens + tokens > settings.queue_tokens_max * share:
            raise QueueFull(
                f"Your waiting jobs hold work for {waiting.tokens} tokens, this job may need {tokens}, and the queue "
                f"has room for {settings.queue_tokens_max}. {SHARE} Try again later, or with a smaller max_tokens.",
                retry_after_ms=retry_after_ms,
            )

    def _check_queue(self, tokens: int, retry_after_ms: int) -> None:
        """Raise QueueFull if there is no room for anybody. An empty queue takes any job."""
        settings = self._settings
        if self.waiting_jobs >= settings.queue_jobs_max:
            raise QueueFull(
                f"The queue is at its limit of {settings.queue_jobs_max} jobs. Try again later.",
                retry_after_ms=retry_after_ms,
            )
        if self.waiting_jobs and self.waiting_tokens + tokens > settings.queue_tokens_max:
            raise QueueFull(
                f"The queue holds work for {self.waiting_tokens} tokens of at most {settings.queue_tokens_max}, and "
                f"this job may need {tokens}. Try again later, or with a smaller max_tokens.",
                retry_after_ms=retry_after_ms,
            )

    def _retry_after_ms(self, stats: Stats | None) -> int:
        """Return an estimate of when a tenth of the waiting work will be done, at the decode rate measured last."""
        if stats is None or stats.decode_tokens_per_s <= 0:
            return RETRY_AFTER_UNKNOWN_MS
        wait_ms = 1000 * self.waiting_tokens / 10 / stats.decode_tokens_per_s
        return int(min(max(wait_ms, RETRY_AFTER_MIN_MS), RETRY_AFTER_MAX_MS))
