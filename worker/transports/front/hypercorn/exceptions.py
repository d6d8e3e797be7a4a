"""Decides what asyncio reports when a callback of the server fails."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from typing import Any

FILES_REPORT_EVERY_S = 60.0
"""How often the log may say that no file is left for another connection."""

logger = logging.getLogger(__name__)


class ExceptionReporter:
    """An exception handler of an event loop: reports as asyncio does, but for two cases.

    Streams of Python 3.11 ask the task of a connection for its exception, which raises if it was cancelled at shutdown.
    And when files run out, asyncio reports that for each connection that waits, thousands of times per second.
    """

    def __init__(self) -> None:
        self._reported_s = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            if loop.time() - self._reported_s > FILES_REPORT_EVERY_S:
                self._reported_s = loop.time()
                logger.error("No connection can be accepted now: %s", error.strerror)
        elif not isinstance(error, asyncio.CancelledError):
            loop.default_exception_handler(context)
