"""What the processes of the gateway have in common: how they run, and that none outlives its parent."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_BROKEN = 1
"""Exit code of a process that raised what nobody caught."""

EXIT_ORPHANED = 4
"""Exit code of a process whose gateway is gone."""

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""

logger = logging.getLogger(__name__)


def end_with(parent_pid: int) -> None:
    """Make this process end with its parent; on Linux even when it hangs in native code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(EXIT_ORPHANED)


def belong_to(parent_pid: int) -> None:
    """Make this process end with the gateway alone, and survive a Ctrl-C that is meant for others."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with(parent_pid)


def run(serve: Callable[[socket.socket], int]) -> NoReturn:
    """Run a process of the gateway with the arguments of the command line: the socket's fd, and the parent's pid."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    belong_to(parent_pid=int(sys.argv[2]))
    code = EXIT_BROKEN
    try:
        code = serve(socket.socket(fileno=int(sys.argv[1])))
    except BaseException:
        logger.exception("the process broke")
    # Not sys.exit: tearing down an interpreter full of native libraries may hang, and nothing is left to save.
    logging.shutdown()
    os._exit(code)
