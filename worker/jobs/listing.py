"""Jobs in the order of their creation, to be listed newest first, from any place on. Pure.

In blocks: adding, removing, and finding where a page begins cost about the same, whether there are ten jobs or a
million.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from operator import attrgetter

from worker.jobs.job import Job

BLOCK_JOBS_MAX = 512

_number = attrgetter("number")


class Listing:
    """Jobs by number. Each that is added has a higher one than those before; none of the blocks is empty."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: list[list[Job]] = []

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, job: Job) -> None:
        """Add the newest job."""
        if not self._blocks or len(self._blocks[-1]) == BLOCK_JOBS_MAX:
            self._blocks.append([])
        self._blocks[-1].append(job)

    def remove(self, job: Job) -> None:
        """Remove a job, which must be here."""
        index = self._begun(job.number + 1) - 1
        block = self._blocks[index]
        del block[bisect_left(block, job.number, key=_number)]
        if not block:
            del self._blocks[index]

    def before(self, number: float = math.inf) -> Iterator[Job]:
        """Yield the jobs whose number is lower than `number`, newest first.

        Nothing may be added or removed meanwhile.
        """
        for index in range(self._begun(number) - 1, -1, -1):
            block = self._blocks[index]
            yield from reversed(block[: bisect_left(block, number, key=_number)])

    def _begun(self, number: float) -> int:
        """Return how many blocks begin with a job whose number is lower than `number`."""
        return bisect_left(self._blocks, number, key=lambda block: block[0].number)
