"""Says no in time: how much may wait, how much one principal may have, and when to come back."""

from __future__ import annotations

from collections import Counter

from worker.config import Settings
from worker.errors import QueueFull, TooManyJobs
from worker.operations.base import JobRequest
from worker.scheduler.messages import Stats

RETRY_AFTER_MIN_MS = 1000
RETRY_AFTER_MAX_MS = 60_000
RETRY_AFTER_UNKNOWN_MS = 5000


class Admission:
    """Counts live jobs and waiting work against the limits. Pure bookkeeping: the service reports every change."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._live: Counter[str] = Counter()
        self.waiting_jobs = 0
        self.waiting_tokens = 0

    def check(self, principal: str, request: JobRequest, stats: Stats | None) -> None:
        """Raise QueueFull or TooManyJobs, each with a retry time from measured rates, if the job may not enter."""
        settings, retry_after_ms = self._settings, self._retry_after_ms(stats)
        if self._live[principal] >= settings.jobs_per_principal_max:
            raise TooManyJobs(
                f"You have {self._live[principal]} live jobs, as many as one caller may. Wait for one to end.",
                retry_after_ms=retry_after_ms,
            )
        if self.waiting_jobs >= settings.queue_jobs_max:
            raise QueueFull(f"{self.waiting_jobs} jobs wait already. Try again later.", retry_after_ms=retry_after_ms)
        tokens = self.waiting_tokens + request.tokens_estimate
        if self.waiting_jobs and tokens > settings.queue_tokens_max:
            raise QueueFull(
                f"The queue holds work for {self.waiting_tokens} tokens of at most {settings.queue_tokens_max}, and "
                f"this job may need {request.tokens_estimate}. Try again later, or with a smaller max_tokens.",
                retry_after_ms=retry_after_ms,
            )

    def entered(self, principal: str) -> None:
        """A job of `principal` was created."""
        self._live[principal] += 1

    def left(self, principal: str) -> None:
        """A job of `principal` ended."""
        self._live[principal] -= 1
        if not self._live[principal]:
            del self._live[principal]

    def waits(self, request: JobRequest) -> None:
        """A job began to wait for a slot."""
        self.waiting_jobs += 1
        self.waiting_tokens += request.tokens_estimate

    def waits_no_more(self, request: JobRequest) -> None:
        """A job got a slot or ended in the queue."""
        self.waiting_jobs -= 1
        self.waiting_tokens -= request.tokens_estimate

    def _retry_after_ms(self, stats: Stats | None) -> int:
        """Estimate when a tenth of the waiting work will be done, at the decode rate measured last."""
        if stats is None or stats.decode_tokens_per_s <= 0:
            return RETRY_AFTER_UNKNOWN_MS
        wait_ms = 1000 * self.waiting_tokens / 10 / stats.decode_tokens_per_s
        return int(min(max(wait_ms, RETRY_AFTER_MIN_MS), RETRY_AFTER_MAX_MS))
