"""Logs the output of a child process, line by line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from worker.processes.child import Child

READ_BYTES = 1 << 18
"""Most bytes that are read from a process at a time."""


async def connect(child: Child) -> tuple[asyncio.StreamReader, Callable[[], None]]:
    """Return a reader of the child's output, and the function that closes it."""
    output = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), child.process.stdout
    )
    return output, pipe.close


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
    text = line.decode(errors="replace").rstrip()
    child.lines.append(text)
    word, _, rest = text.partition(" ")
    level = logging.getLevelNamesMapping().get(word)
    logger.log(level or logging.INFO, "%s", rest if level else text, extra={"pid": child.pid})
