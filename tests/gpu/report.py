"""The table that a run on a GPU leaves behind, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

GOAL = 0.98
"""Share of the bare generator's tokens per second that is to reach clients over WebSocket, at the most streams."""


class Report:
    """Rows of what was asked and what came of it. Written after every row: a run that is cut off leaves what it had."""

    def __init__(self, path: Path | None, machine: str, now: datetime | None = None) -> None:
        self._path = path
        self._head = f"ExLlamaV2 on {machine}, {(now or datetime.now(UTC)):%Y-%m-%d}"
        self.rows: list[tuple[str, str]] = []

    def add(self, what: str, result: str) -> None:
        """Add a row."""
        self.rows.append((what, result))
        if self._path is not None:
            self._path.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The whole table."""
        lines = [self._head, "", "| What | Result |", "|---|---|"]
        lines += [f"| {what} | {result.replace('|', '/')} |" for what, result in self.rows]
        return "\n".join(lines) + "\n"


def percentiles(values: Sequence[float]) -> str:
    """The median and the 99th percentile of some milliseconds."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]:.1f}"


def speeds(streams: int, raw: float, loop: float, delivered: float, goal: bool) -> str:
    """Tokens per second of the library's generator, of our loop around it, and of what clients got."""
    share = delivered / raw
    verdict = "" if not goal else f", goal {GOAL}: {'met' if share >= GOAL else 'missed'}"
    return (
        f"{streams} streams: bare generator {raw:.0f}, scheduler loop {loop:.0f} ({loop / raw:.3f}), "
        f"over WebSocket {delivered:.0f} ({share:.3f}{verdict})"
    )


def read(line: str) -> dict[str, float]:
    """Return what a measuring process printed."""
    found: dict[str, float] = json.loads(line)
    return found
