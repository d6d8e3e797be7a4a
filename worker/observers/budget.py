"""Bounds the lines that anybody could write into the log by asking for nothing: refusals, and the traces of bugs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0
REFUSED = "refused"
"""The event of all refusals. Lines about jobs, engines and settings always pass."""


@dataclass(slots=True)
class _Window:
    begun_s: float = -math.inf
    passed: int = 0
    left_out: int = 0


class LineBudget(logging.Filter):
    """Lets `lines_per_minute_max` lines of each kind pass; the next one that passes has the number of `left_out`.

    The kind of a refusal is its code, that of a trace its message. The metrics count every refusal all the same.
    """

    def __init__(self, lines_per_minute_max: int, monotonic_s: Callable[[], float]) -> None:
        super().__init__()
        self._lines_max = lines_per_minute_max
        self._monotonic_s = monotonic_s
        self._windows: dict[tuple[object, ...], _Window] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        if record.msg != REFUSED and not record.exc_info:
            return True
        kind = record.msg, getattr(record, "code", None), getattr(record, "close_code", None)
        window, now_s = self._windows.setdefault(kind, _Window()), self._monotonic_s()
        if now_s - window.begun_s >= WINDOW_S:
            window.begun_s, window.passed = now_s, 0
        if window.passed >= self._lines_max:
            window.left_out += 1
            return False
        window.passed += 1
        record.left_out = window.left_out or None
        window.left_out = 0
        return True
