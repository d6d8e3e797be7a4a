"""Admission control: refuses a job early, with the time after which to try again."""

from __future__ import annotations

from collections import Counter

from worker.config import Settings
from worker.errors import QueueFull, TooManyJobs
from worker.events import Usage
from worker.jobs.limits.principals import Principal
from worker.jobs.limits.quota import Quotas
from worker.operations.base import JobRequest
from worker.scheduler.works import Stats

RETRY_AFTER_MIN_MS = 1000
RETRY_AFTER_MAX_MS = 60_000
RETRY_AFTER_UNKNOWN_MS = 5000
"""The advice while no decode rate has been measured."""


class Admission:
    """Counts live jobs and waiting work against the limits. Pure bookkeeping: the service reports every change.

    `waiting_jobs` and `waiting_tokens` are those of all jobs that wait for a slot.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._live: Counter[str] = Counter()
        self._live_of_account: Counter[str] = Counter()
        self._quotas = Quotas()
        self.waiting_jobs = 0
        self.waiting_tokens = 0

    def admit(self, owner: Principal, request: JobRequest, stats: Stats | None, now_ms: float) -> None:
        """Charge a new job to its account's quota, or refuse it.

        Raises TooManyJobs and QueueFull, with a retry time from measured rates, and RateLimited, with the exact one.
        """
        settings, retry_after_ms = self._settings, self._retry_after_ms(stats)
        allowance = owner.allowance
        live = self._live_of_account[owner.account] if allowance.jobs_max else self._live[owner.name]
        if live >= (allowance.jobs_max or settings.jobs_per_principal_max):
            raise TooManyJobs(
                f"You have {live} live jobs, the limit for one caller. Wait for one to end.",
                retry_after_ms=retry_after_ms,
            )
        if self.waiting_jobs >= settings.queue_jobs_max:
            raise QueueFull(
                f"The queue is at its limit of {settings.queue_jobs_max} jobs. Try again later.",
                retry_after_ms=retry_after_ms,
            )
        tokens = self.waiting_tokens + request.tokens_estimate
        if self.waiting_jobs and tokens > settings.queue_tokens_max:
            raise QueueFull(
                f"The queue holds work for {self.waiting_tokens} tokens of at most {settings.queue_tokens_max}, and "
                f"this job may need {request.tokens_estimate}. Try again later, or with a smaller max_tokens.",
                retry_after_ms=retry_after_ms,
            )
        # Last, because it charges the account.
        limits = {
            "jobs": allowance.jobs_per_minute_max or settings.jobs_per_minute_max,
            "tokens": allowance.tokens_per_minute_max or settings.tokens_per_minute_max,
        }
        self._quotas.charge(owner.account, limits, {"jobs": 1, "tokens": request.tokens_estimate}, now_ms)

    def on_created(self, owner: Principal) -> None:
        """Count a new job as live."""
        self._live[owner.name] += 1
        self._live_of_account[owner.account] += 1

    def on_tokenized(self, owner: Principal, charged: int, exact: int, now_ms: float) -> None:
        """Correct what was charged for a waiting job, an estimate, to what it may use now that its prompt is read."""
        self.waiting_tokens += exact - charged
        self._quotas.settle(owner.account, "tokens", exact - charged, now_ms)

    def on_ended(self, owner: Principal, charged: int, usage: Usage, now_ms: float) -> None:
        """Count a job as ended, and correct what was charged for it to what it used."""
        for counter, name in ((self._live, owner.name), (self._live_of_account, owner.account)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]
        used = usage.prompt_tokens + usage.completion_tokens
        self._quotas.settle(owner.account, "tokens", used - charged, now_ms)

    def on_queued(self, tokens: int) -> None:
        """Count a job that waits for a slot, and may occupy this many tokens."""
        self.waiting_jobs += 1
        self.waiting_tokens += tokens

    def on_dequeued(self, tokens: int) -> None:
        """Count a job out of the queue: it has a slot, or ended there."""
        self.waiting_jobs -= 1
        self.waiting_tokens -= tokens

    def _retry_after_ms(self, stats: Stats | None) -> int:
        """Return an estimate of when a tenth of the waiting work will be done, at the decode rate measured last."""
        if stats is None or stats.decode_tokens_per_s <= 0:
            return RETRY_AFTER_UNKNOWN_MS
        wait_ms = 1000 * self.waiting_tokens / 10 / stats.decode_tokens_per_s
        return int(min(max(wait_ms, RETRY_AFTER_MIN_MS), RETRY_AFTER_MAX_MS))
