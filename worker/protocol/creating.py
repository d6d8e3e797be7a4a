"""Creates the job that a client asks for, the same over every transport."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from worker.errors import UnsupportedOperation, shortened
from worker.jobs.job import Job
from worker.operations.base import Described
from worker.operations.fields import WrongFields
from worker.protocol.frames import Create
from worker.protocol.host import Caller, SessionHost

IGNORED_MAX = 8
"""Unknown fields that a reply names."""

IGNORED_CHARS_MAX = 40
"""Characters of each name: clients choose them freely, and percent-encoded they must fit a header."""

ENVELOPE = frozenset({"type", *Create.__struct_fields__}) - Create.UNSENT
"""The fields of a `create` that any operation has."""


class Creation(msgspec.Struct, frozen=True):
    """A job that was asked for. `existing`: it was there before. `ignored` names fields that mean nothing here."""

    job: Job
    existing: bool
    ignored: tuple[str, ...]


def create(host: SessionHost, caller: Caller, frame: Create) -> Creation:
    """Create the job that a frame asks for, or find the one that the same request created before.

    Raises InvalidParams, which names what is wrong with the frame and with its body; UnsupportedOperation; and what
    `Jobs.create` raises.
    """
    wrong, resuming = WrongFields(frame.wrong), frame.after is not None
    if resuming and frame.job_id is None and "job_id" not in wrong.names:
        wrong.add("/after", "Expected `after` only together with `job_id`")
    operation = host.operations.get(frame.operation)
    if operation is None:
        offered = ", ".join(sorted(host.operations))
        wrong.add("/operation", f"Expected one of {offered}")
        detail = f"This worker has no operation {shortened(frame.operation)!r}. It has: {offered}."
        raise UnsupportedOperation(detail, errors=wrong.error().errors)
    request = operation.parse(frame.body, host.limits, wrong)
    job, existing = host.jobs.create(
        caller.owner, frame.job_id, request, resuming=resuming, correlation=caller.correlation
    )
    return Creation(job, existing, unknown_fields(frame.body, operation))


def unknown_fields(body: Mapping[str, object], operation: Described) -> tuple[str, ...]:
    """Return the names of a body's fields that mean nothing to the worker, in part. null is the same as absent."""
    known = operation.params.__annotations__
    names = (name for name, value in body.items() if value is not None and name not in ENVELOPE and name not in known)
    return tuple(name[:IGNORED_CHARS_MAX] for name, _ in zip(names, range(IGNORED_MAX), strict=False))
