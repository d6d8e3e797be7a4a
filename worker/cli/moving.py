"""Progress of loading on stderr: one line that moves, on a terminal; a line for each stage elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from worker import printable
from worker.engines.base import LoadProgress, OnLoad


@contextmanager
def loading_line() -> Iterator[OnLoad]:
    """Give a function that shows how far loading is. The line ends with the block."""
    moves = sys.stderr.isatty()
    shown, width = "", 0

    def show(progress: LoadProgress) -> None:
        nonlocal shown, width
        stage = printable.in_line(progress.stage)
        if moves:
            text = f"Loading: {stage}, {progress.done} of {progress.total}"
            # Padded, so that a shorter text leaves nothing of the one before.
            print(f"\r{text:{width}}", end="", file=sys.stderr, flush=True)
            width = len(text)
        elif stage != shown:
            print(f"Loading: {stage}", file=sys.stderr, flush=True)
        shown = stage

    try:
        yield show
    finally:
        if width:
            print(file=sys.stderr, flush=True)
