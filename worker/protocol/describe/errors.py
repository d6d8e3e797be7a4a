"""The errors that a client can meet, from the tree itself."""

from __future__ import annotations

from worker.errors import BusyError, ConfigError, FieldError, InvalidParams, JobwireError

NEVER_ON_THE_WIRE: frozenset[type[JobwireError]] = frozenset({ConfigError})
"""The program does not start."""


def error_classes() -> list[type[JobwireError]]:
    """Return every class of error that has a code of its own, in the order of status and code."""
    found: list[type[JobwireError]] = []
    todo: list[type[JobwireError]] = [JobwireError]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if "code" in vars(kind) and kind.__module__ == JobwireError.__module__ and kind not in NEVER_ON_THE_WIRE:
            found.append(kind)
    return sorted(found, key=lambda kind: (kind.status, kind.code))


def meaning(kind: type[JobwireError]) -> str:
    """Return what an error means, in a sentence or two."""
    if kind is JobwireError:
        return "Something went wrong in the worker. The error was logged."
    return " ".join((kind.__doc__ or "").split())


def example(kind: type[JobwireError]) -> JobwireError:
    """Return an error of a kind as a client might meet it."""
    if kind is InvalidParams:
        wrong = FieldError("/temperature", "Expected a number, at most 2")
        return kind("Fix this field and try again: temperature: Expected a number, at most 2.", errors=(wrong,))
    return kind(meaning(kind), retry_after_ms=2000 if issubclass(kind, BusyError) else None)
