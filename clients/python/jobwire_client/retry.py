"""When to try again, and for how long."""

from __future__ import annotations

import random
import time

from .errors import ConnectionFailed, JobwireError

ATTEMPT_S_MAX = 30.0
"""How long one attempt may last: a key, a connection and a hello."""

STABLE_S = 5.0
"""A connection that lasted this long ends an outage, even if nothing happened on it."""


class Retry:
    """Spaces the attempts of one outage, with jitter, and ends it when it has lasted too long."""

    def __init__(self, timeout_s: float, first_s: float, most_s: float) -> None:
        self._limits = timeout_s, first_s, most_s
        self.clear()

    def clear(self) -> None:
        """End the outage: the next pause is short again."""
        self._tries = 0
        self._outage_s = 0.0
        self._asked_at = self._delay_s = 0.0

    def delay_s(self, cause: Exception, at_least_s: float = 0.0) -> float:
        """Return the pause before the next attempt.

        Raises `cause` when the outage has lasted too long; an error of another library as ConnectionFailed.
        """
        timeout_s, first_s, most_s = self._limits
        now = time.monotonic()
        if self._tries:
            # Time beyond the pause and an attempt does not count: no job needed a connection, or the machine slept.
            self._outage_s += min(now - self._asked_at, self._delay_s + ATTEMPT_S_MAX)
        # A worker sends many clients the same time to wait. Jitter is added to it, or they would all return at once.
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - not for secrets
        delay_s = at_least_s + min(most_s, first_s * 2.0**self._tries) * jitter
        if self._outage_s + delay_s > timeout_s:
            if isinstance(cause, JobwireError):
                raise cause
            raise ConnectionFailed(f"No answer for {timeout_s:g} s: {cause}", "connection_failed") from cause
        self._tries = min(self._tries + 1, 32)
        self._asked_at, self._delay_s = now, delay_s
        return delay_s
