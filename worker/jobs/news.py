"""What happened to jobs, on its way to those who observe them and to the readers of their logs.

Tokens are passed on by engine step: nearly all records are tokens, and most of their cost was to tell of each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from worker.events import Record
from worker.jobs.job import Job

Observer: TypeAlias = Callable[[Job, Record], None]
"""Called with each record that is no token, and its job, once it is appended. Must not raise, must not wait."""

TokenObserver: TypeAlias = Callable[[Sequence[tuple[Job, Record]]], None]
"""Called with the tokens of an engine step, before any later record. Must not raise, must not wait."""


class News:
    """The observers, and the tokens that they have not been told of yet."""

    def __init__(self, observers: Iterable[Observer], token_observers: Iterable[TokenObserver]) -> None:
        self.observers = tuple(observers)
        self.token_observers = tuple(token_observers)
        self._tokens: list[tuple[Job, Record]] = []

    def add_token(self, job: Job, record: Record) -> None:
        """Keep a token until the rest of its step is written."""
        self._tokens.append((job, record))

    def pass_tokens_on(self) -> None:
        """Tell observers and readers of the tokens that were added since the last time."""
        if self._tokens:
            tokens, self._tokens = self._tokens, []
            for observe in self.token_observers:
                observe(tokens)
            for job, _ in tokens:
                job.log.wake()

    def pass_on(self, job: Job, record: Record) -> None:
        """Tell observers of any other record. Its readers know already."""
        for observe in self.observers:
            observe(job, record)
