"""A thread beside the steps, for what would hold them up: compiling a form, and freeing a big one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")

STACK_BYTES = 1 << 26
"""The compiler recurses along chains of rules: the usual stack, and the process with it, ends after some thousands.

Memory is committed only as far as it is used.
"""

_Job: TypeAlias = Callable[[], None] | object | None
"""A function to call, anything else to free, or None to end."""


class Beside:
    """Runs functions one after the other in a thread of its own, which starts with the first one.

    Until then the process can be forked. The thread ends when this object is gone.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._started = False

    def run(self, function: Callable[[], Result]) -> Future[Result]:
        """Call the function there; a future that is cancelled before is skipped."""
        future: Future[Result] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        self._start()
        self._jobs.put(call)
        return future

    def free(self, thing: object) -> None:
        """Drop the last reference to something there. Can be called at any moment, even while memory is collected."""
        self._jobs.put(thing)

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        weakref.finalize(self, self._jobs.put, None)
        usual = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=_work, args=(self._jobs,), name="beside", daemon=True).start()
        finally:
            threading.stack_size(usual)


def _work(jobs: SimpleQueue[_Job]) -> None:
    while (job := jobs.get()) is not None:
        if callable(job):
            job()
        del job
