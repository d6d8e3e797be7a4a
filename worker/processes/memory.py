"""How much memory processes use, as Linux reports it. Elsewhere nothing is known: None, or 0."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def shared_out_bytes(pids: Iterable[int]) -> int | None:
    """Return the memory of processes together, with what they share counted once; None if it is not known."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            # It has ended, or this is not Linux.
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total or None


def private_bytes() -> int:
    """Return the memory of this process that no file backs, and that is in RAM; 0 if it is not known."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def data_bytes() -> int:
    """Return the size that RLIMIT_DATA bounds: private writable memory of this process, used or not; 0 if unknown."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)


def oom_kills() -> int:
    """Return how many processes of our control group the kernel has killed for want of memory; 0 if it is not known."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::")[2].strip()
        events = Path(f"/sys/fs/cgroup/{group}/memory.events").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill ")), 0)
