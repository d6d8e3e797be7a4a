"""Events that wait for their reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from .events import Event, Narration, Token

EVENT_COST_BYTES = 256
"""Roughly the memory of an unread event without its text."""


class Unread:
    """The unread events of one job, in order; `cost_bytes` is roughly their memory."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self.cost_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._events)

    def push(self, event: Event) -> None:
        self._events.append(event)
        self.cost_bytes += _cost_bytes(event)

    def pop(self) -> Event:
        """Pop the oldest event. A token is merged with the tokens that follow it."""
        run = [self._events.popleft()]
        while self._events and _are_mergeable(run[0], self._events[0]):
            run.append(self._events.popleft())
        self.cost_bytes -= sum(map(_cost_bytes, run))
        return run[0] if len(run) == 1 else _merge(run)

    def clear(self) -> None:
        self._events.clear()
        self.cost_bytes = 0


def _cost_bytes(event: Event) -> int:
    if isinstance(event, Token):
        return EVENT_COST_BYTES + len(event.text)
    return EVENT_COST_BYTES + (len(event.human) if isinstance(event, Narration) else 0)


def _are_mergeable(a: Event, b: Event) -> bool:
    return isinstance(a, Token) and isinstance(b, Token) and (a.index, a.kind) == (b.index, b.kind)


def _merge(run: Sequence[Event]) -> Token:
    """Return one token event for a run of them, with the whole text and the last cursor."""
    tokens = [event for event in run if isinstance(event, Token)]
    return replace(
        tokens[-1],
        text="".join(token.text for token in tokens),
        n=sum(token.n for token in tokens),
        ids=tuple(i for token in tokens for i in token.ids),
        logprobs=tuple(x for token in tokens for x in token.logprobs),
        top_logprobs=tuple(x for token in tokens for x in token.top_logprobs),
    )
