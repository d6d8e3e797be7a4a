"""What a check found, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from worker import printable

Level: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check. A `problem` keeps the worker from serving, a `note` is worth knowing."""

    level: Level
    what: str
    fix: str = ""


def show(findings: Iterable[Finding]) -> int:
    """Print findings as they come; return the number of problems."""
    problems = 0
    for finding in findings:
        problems += finding.level == "problem"
        print(f"{finding.level:8} {printable.in_lines(finding.what)}", flush=True)
        if finding.fix:
            print(f"{'':8} -> {printable.in_lines(finding.fix)}", flush=True)
    return problems
