"""When to try again, and for how long."""

from __future__ import annotations

import random
import time

from .errors import ConnectionFailed, JobwireError

ATTEMPT_S_MAX = 30.0  # what one attempt may take: a key, a connection and a hello
STABLE_S = 5.0  # a connection that lasted this long ends an outage, even if nothing happened on it


class Retry:
    """Spaces the attempts of one outage, with jitter, and says when it has lasted too long."""

    def __init__(self, timeout_s: float, first_s: float, most_s: float) -> None:
        self._limits = timeout_s, first_s, most_s
        self.clear()

    def clear(self) -> None:
        """The outage is over."""
        self._tries = 0
        self._outage_s = 0.0
        self._asked_at = self._delay_s = 0.0

    def delay_s(self, cause: Exception, at_least_s: float = 0.0) -> float:
        """Return how long to wait now. Raises `cause`, as a ConnectionFailed if it is none of ours."""
        timeout_s, first_s, most_s = self._limits
        now = time.monotonic()
        if self._tries:
            # What was neither pause nor attempt is no outage: nothing was wanted, or the machine slept.
            self._outage_s += min(now - self._asked_at, self._delay_s + ATTEMPT_S_MAX)
        # Many clients are told the same time at once, and must not come back at once: jitter goes on top of it.
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret
        delay_s = at_least_s + min(most_s, first_s * 2.0**self._tries) * jitter
        if self._outage_s + delay_s > timeout_s:
            if isinstance(cause, JobwireError):
                raise cause
            raise ConnectionFailed(f"No answer for {timeout_s:g} s: {cause}", "connection_failed") from cause
        self._tries = min(self._tries + 1, 32)
        self._asked_at, self._delay_s = now, delay_s
        return delay_s
