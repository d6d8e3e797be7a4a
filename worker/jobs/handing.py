"""Hands the choices of jobs to the broker, each attempt under a lease of its own, and finds whom a death may blame.

A lease is over when its choice ends, is handed over again, or its job ends: events that still arrive under it belong to
nobody, so a stale engine cannot write to a log.
"""

from __future__ import annotations

from worker.brokers.base import Broker
from worker.jobs.job import Choice, Job
from worker.scheduler.works import Work

SOLO_AFTER_DEATHS = 2
"""A job during which the engine died this many times in a row is tried alone, so that no other job dies with it."""


class Handing:
    """The leases that are held now. `leases` is read by the service, and changed here only."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.leases: dict[str, tuple[Job, Choice]] = {}
        self._leases_made = 0
        self._suspect = ""

    def submit(self, job: Job, choice: Choice) -> None:
        """Hand a choice to the broker under a new lease; the old one is over."""
        self.leases.pop(choice.lease, None)
        self._leases_made += 1
        choice.wait(str(self._leases_made))
        self.leases[choice.lease] = (job, choice)
        self._broker.submit(
            Work(
                generation=job.generation(choice),
                account=job.owner.account,
                weight=job.owner.allowance.weight,
                priority=job.priority,
                solo=job.deaths >= SOLO_AFTER_DEATHS,
            )
        )

    def submit_open(self, job: Job) -> None:
        """Hand over the choices that have not ended. While the prompt is unread only the first: it is read once."""
        for choice in job.choices if job.prompt_ids else job.choices[:1]:
            if not choice.ended:
                self.submit(job, choice)

    def submit_siblings(self, job: Job) -> None:
        """Hand over the choices that waited until the prompt was read for the first one."""
        for choice in job.choices[1:]:
            self.submit(job, choice)

    def prioritize(self, job: Job) -> None:
        """Report the priority of a job to the broker, for the choices that it has."""
        for choice in job.choices:
            if choice.lease in self.leases:
                self._broker.prioritize(choice.lease, job.priority)

    def release(self, choice: Choice) -> None:
        """End the lease of a choice that the engine has ended."""
        del self.leases[choice.lease]

    def withdraw(self, job: Job) -> None:
        """End the leases of a job that has ended; the engine drops what it still has of it."""
        for choice in job.choices:
            if self.leases.pop(choice.lease, None) is not None:
                self._broker.cancel(choice.lease)

    def suspect(self, lease: str) -> None:
        """Remember what the engine is about to do: if it dies before its next message, it died of that."""
        self._suspect = lease

    def pop_suspect(self) -> str:
        """Return the lease that an engine was busy with when it died, or nothing; the next engine begins without."""
        suspect, self._suspect = self._suspect, ""
        return suspect


def is_blamed(job: Job, suspect: str) -> bool:
    """Return whether an engine may have died of this job: the suspected one, or without a suspect any that ran."""
    return job.holds(suspect) if suspect else job.runs
