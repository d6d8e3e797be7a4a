"""Watches a child process: logs its output line by line, waits for its end, and paces its restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from worker import printable
from worker.config import Settings
from worker.processes.child import Child

READ_BYTES = 1 << 18
"""Most bytes that are read from a process at a time."""

REAP_TIMEOUT_S = 5.0
"""How long the kernel may take to end a process that was killed, and its exit code to arrive."""

FINAL_OUTPUT_S = 1.0
"""How long the last output of a process that has ended is waited for."""


async def connect(child: Child) -> tuple[asyncio.StreamReader, Callable[[], None]]:
    """Return a reader of the child's output, and the function that closes it."""
    output = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), child.process.stdout
    )
    return output, pipe.close


def restart_pause_s(settings: Settings, starts_in_a_row: int) -> float:
    """Return the pause before the next start: it doubles with each start in a row."""
    pause_s = settings.engine_restart_backoff_s * 2.0 ** min(starts_in_a_row - 1, 32)
    return min(pause_s, settings.engine_restart_backoff_max_s)


async def wait_end(child: Child, seconds: float) -> bool:
    """Wait for the end of a child, not longer than that; return whether it has ended."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + seconds
    # Polling is cheaper here than a thread or file descriptor per process that could notify us.
    while child.alive and loop.time() < until_s:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return not child.alive


async def log_output(child: Child, output: asyncio.StreamReader, logger: logging.Logger) -> None:
    """Log what it prints until it ends, and keep the last lines."""
    rest = b""
    while data := await output.read(READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        # A line without end is cut rather than collected.
        if len(rest) > READ_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _log_line(child, line, logger)
    if rest:
        _log_line(child, rest, logger)


def _log_line(child: Child, line: bytes, logger: logging.Logger) -> None:
    # Libraries print names and texts of the model's file.
    text = printable.in_line(line.decode(errors="replace").rstrip())
    child.lines.append(text)
    word, _, rest = text.partition(" ")
    level = logging.getLevelNamesMapping().get(word)
    logger.log(level or logging.INFO, "%s", rest if level else text, extra={"pid": child.pid})
