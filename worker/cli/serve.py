"""`jobwire serve`: read the settings, set up logging, hand over to the composition root."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence

from worker import app
from worker.cli.output import Output
from worker.config import load
from worker.engines.choose import MODULES
from worker.errors import ConfigError
from worker.observers import logs

logger = logging.getLogger(__name__)


def serve(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until a signal; return the exit code. Raises ConfigError for wrong settings or a taken port."""
    warnings: list[str] = []
    settings = load(argv, environ, warn=warnings.append)
    engines = ("auto", *MODULES)
    if settings.engine not in engines:
        raise ConfigError(f"engine is {settings.engine!r}, but must be one of {', '.join(engines)}.")
    output, log_output = Output(sys.stdout), Output(sys.stderr)
    logs.configure(settings, log_output)
    for warning in warnings:
        logger.warning("%s", warning)
    try:
        return asyncio.run(app.serve(settings, output.write_line))
    finally:
        output.drain()
        log_output.drain()
