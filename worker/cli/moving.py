"""Progress of loading on stderr: one line that moves, on a terminal; a line for each stage elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TextIO

from worker import printable
from worker.engines.base import LoadProgress


class LoadingLine:
    """Shows each progress that it is called with; when the block ends, so does the line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._moves = self._stream.isatty()
        self._stage = ""
        self._width = 0

    def __call__(self, progress: LoadProgress) -> None:
        """Show how far loading is."""
        stage = printable.in_line(progress.stage)
        if self._moves:
            text = f"Loading: {stage}, {progress.done} of {progress.total}"
            # A shorter text leaves nothing of the one before.
            self._write(f"\r{text:{self._width}}")
            self._width = len(text)
        elif stage != self._stage:
            self._write(f"Loading: {stage}\n")
        self._stage = stage

    def __enter__(self) -> LoadingLine:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._width:
            self._write("\n")

    def _write(self, text: str) -> None:
        print(text, end="", file=self._stream, flush=True)
