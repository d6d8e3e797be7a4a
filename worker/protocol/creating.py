"""What a client may ask of the jobs, the same over every transport."""

from __future__ import annotations

from collections.abc import Mapping

from worker.errors import FieldError, UnsupportedOperation
from worker.jobs.correlation import UNKNOWN, Correlation
from worker.jobs.job import Job
from worker.jobs.limits.principals import Principal
from worker.jobs.service import Jobs
from worker.operations.base import Limits, Operation
from worker.protocol.decoding import invalid
from worker.protocol.frames import Create, Subscribe


def create(
    jobs: Jobs,
    operations: Mapping[str, Operation],
    limits: Limits,
    owner: Principal,
    frame: Create,
    correlation: Correlation = UNKNOWN,
) -> tuple[Job, bool]:
    """Create the job that a frame asks for, or find it; return it and whether it was there before.

    Raises UnsupportedOperation, InvalidParams, and what `Jobs.create` raises.
    """
    check_delivery(frame, limits)
    if frame.after is not None and frame.job_id is None:
        raise invalid(FieldError("/after", "Expected `after` only together with `job_id`"))
    operation = operations.get(frame.operation)
    if operation is None:
        raise UnsupportedOperation(
            f"This worker has no operation {frame.operation!r}. It has: {', '.join(sorted(operations))}."
        )
    request = operation.parse(frame.body, limits)
    return jobs.create(owner, frame.job_id, request, resuming=frame.after is not None, correlation=correlation)


def check_delivery(frame: Create | Subscribe, limits: Limits) -> None:
    """Refuse more than may be asked of the delivery of a job. Raises InvalidParams."""
    for name, asked, most in (
        ("window", frame.window, limits.window_frames_max),
        ("coalesce_ms", frame.coalesce_ms, limits.coalesce_ms_max),
    ):
        if asked > most:
            raise invalid(FieldError(f"/{name}", f"Expected an integer, at most {most}"))
