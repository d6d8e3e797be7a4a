"""Errors. Programs see JobwireError and its subclasses; a Cut stays inside, and the client recovers from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self


class JobwireError(Exception):
    """Base of all errors of this client. `code` is stable; `retry_after_ms` is set only when a retry makes sense."""

    def __init__(self, detail: str, code: str, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{detail} ({code})")
        self.detail = detail
        self.code = code
        self.problem: Mapping[str, Any] = problem or {}
        self.status: int | None = self.problem.get("status")
        self.retry_after_ms: int | None = self.problem.get("retry_after_ms")

    @classmethod
    def of(cls, problem: Mapping[str, Any]) -> Self:
        """Build the error from the worker's problem object (RFC 9457)."""
        return cls(problem.get("detail") or problem.get("title") or "No detail", problem.get("code", "error"), problem)


class Refused(JobwireError):
    """The worker refused a request."""


class JobFailed(JobwireError):
    """The job ended as failed or expired."""


class JobCancelled(JobwireError):
    """The whole text was requested, but the job was cancelled; `text` is the text up to then."""

    text = ""


class ConnectionFailed(JobwireError):
    """The client gave up the connection. Jobs continue at the worker, and `cursor` resumes them."""


class Cut(ConnectionError):
    """There is no connection for now. Another attempt makes sense, but not before `retry_s`."""

    def __init__(self, detail: str, retry_s: float = 0.0) -> None:
        super().__init__(detail)
        self.retry_s = retry_s


class NoKey(Cut):
    """The program's function for the key failed, perhaps only this time."""
