"""Standard output and error of a server: a thread writes, so that no caller waits or fails.

A stopped terminal, a pipe that nobody reads or a full disk must not stop the worker. Text that cannot be written waits
here, up to TEXTS_MAX texts; further texts are lost, and their number is written when writing goes on.
"""

from __future__ import annotations

import io
import os
import queue
import threading
import time
from typing import TextIO

TEXTS_MAX = 10_000

RETRY_S = 0.5
"""Pause after a failed write."""

DRAIN_TIMEOUT_S = 1.0
"""How long the end of the program waits for text that is not written yet."""


class Output(io.TextIOBase):
    """Writes text to the file of `stream`."""

    def __init__(self, stream: TextIO, texts_max: int = TEXTS_MAX) -> None:
        self._stream = stream
        self._waiting: queue.Queue[str] = queue.Queue(texts_max)
        self._lost = 0
        # A daemon: it may be stuck for ever, and must not delay the end of the program.
        threading.Thread(target=self._run, name="output", daemon=True).start()

    def isatty(self) -> bool:
        """Return whether people read it."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Queue a text, whole lines at best, to be written soon. Never waits."""
        try:
            if self._lost:
                self._waiting.put_nowait(f'{{"event": "output_lost", "texts": {self._lost}}}\n')
                self._lost = 0
            self._waiting.put_nowait(text)
        except queue.Full:
            self._lost += 1
        return len(text)

    def write_line(self, line: str) -> None:
        """Queue a line to be written soon."""
        self.write(f"{line}\n")

    def drain(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Wait until all is written, `timeout_s` at most."""
        written = self._waiting.all_tasks_done
        with written:
            written.wait_for(lambda: not self._waiting.unfinished_tasks, timeout_s)

    def _run(self) -> None:
        number = self._stream.fileno()
        while True:
            data = self._waiting.get().encode(self._stream.encoding, "backslashreplace")
            while data:
                try:
                    data = data[os.write(number, data) :]
                except OSError:
                    # There may be room again, or never: then this thread waits in vain, and nobody waits for it.
                    time.sleep(RETRY_S)
            self._waiting.task_done()
