"""Ties a process to its parent: it never outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

EXIT_ORPHANED = 4
"""Exit code of a process whose gateway is gone."""

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""


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
