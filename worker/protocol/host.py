"""What the protocol needs of the worker around it: the transports' gateway is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from worker.config import Settings
from worker.jobs.correlation import UNKNOWN, Correlation
from worker.jobs.job import Job
from worker.jobs.limits.principals import Principal
from worker.jobs.service import Jobs
from worker.operations.base import Limits, Operation
from worker.protocol.pacing import Timer
from worker.protocol.reading import FrameSource
from worker.protocol.tally import Tally


class SessionHost(Protocol):
    """The parts of the worker that a session, or one request over HTTP, needs."""

    jobs: Jobs
    operations: Mapping[str, Operation]
    settings: Settings
    limits: Limits
    tally: Tally
    frame_source: FrameSource
    timer: Timer

    def sse_url(self, job: Job) -> str:
        """Return where the owner of a job can read it as server-sent events, as a path without a proxy's prefix."""
        ...


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and by which name the request is followed through logs and traces."""

    owner: Principal
    correlation: Correlation = UNKNOWN
