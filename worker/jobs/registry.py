"""Which jobs are known: live ones, and ended ones while they are kept. Found by owner and id, listed newest first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from worker.errors import JobNotFound, shortened
from worker.jobs.job import Job
from worker.jobs.limits.retention import FORGOTTEN_MAX, FORGOTTEN_PER_END, JobKey, Retention
from worker.jobs.listing import Listing

NUMBERS_PER_MS = 1000
"""Numbers of jobs are microseconds, so that they stay in order when the worker is started again."""


class Registry:
    """All jobs by (owner_name, id), and those of each owner in order. `live` are those that have not ended."""

    def __init__(self, retention: Retention) -> None:
        self.live: dict[JobKey, Job] = {}
        self._jobs: dict[JobKey, Job] = {}
        self._everybodys = Listing()
        self._by_owner: dict[str, Listing] = {}
        self._last_number = 0
        self._retention = retention

    def find(self, owner_name: str, job_id: str) -> Job | None:
        """Return a job, or None."""
        return self._jobs.get((owner_name, job_id))

    def get(self, owner_name: str, job_id: str) -> Job:
        """Return a job. Raises JobNotFound."""
        job = self.find(owner_name, job_id)
        if job is None:
            raise JobNotFound(
                f"There is no job {shortened(job_id)}. It may have been forgotten after its retention time."
            )
        return job

    def list(self, owner_name: str | None, before: float, limit: int | None) -> list[Job]:
        """Return the jobs of one owner, or with None those of all, that have a number below `before`: newest first."""
        listing = self._everybodys if owner_name is None else self._by_owner.get(owner_name)
        return [] if listing is None else list(islice(listing.before(before), limit))

    def add(self, job: Job) -> None:
        """Add a new job, and number it."""
        self._last_number = job.number = max(self._last_number + 1, job.created_at_ms * NUMBERS_PER_MS)
        key = (job.owner_name, job.id)
        self._jobs[key] = self.live[key] = job
        self._everybodys.add(job)
        self._by_owner.setdefault(job.owner_name, Listing()).add(job)

    def retire(self, job: Job, now_ms: float) -> tuple[Job, ...]:
        """Count a job as ended, and begin its retention; return the jobs that it leaves no room for, removed."""
        due = tuple(self.pop_due(now_ms, FORGOTTEN_PER_END))
        key = (job.owner_name, job.id)
        del self.live[key]
        self._retention.add(key, job.kept_bytes, now_ms)
        return due

    def pop_due(self, now_ms: float, most: int = FORGOTTEN_MAX) -> Iterator[Job]:
        """Remove the jobs whose retention is over, and yield them: `most` at a time."""
        for key in self._retention.pop_due(now_ms, most):
            job = self._jobs.pop(key)
            self._everybodys.remove(job)
            own = self._by_owner[job.owner_name]
            own.remove(job)
            if not own:
                del self._by_owner[job.owner_name]
            yield job
