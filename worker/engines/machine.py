"""Facts about the machine that an engine needs before it reserves anything."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the size of the machine's memory, None where the system does not reveal it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def memory_free_bytes() -> int | None:
    """Return the memory that can be had without taking it from others, None where the system does not reveal it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def lacks_avx2() -> bool:
    """Return whether this is an x86-64 CPU without AVX2, as numpy found it; newer releases call it X86_V3."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return {"AVX2", "X86_V3"}.isdisjoint(_found())


@cache
def has_avx512() -> bool:
    """Return whether numpy found AVX-512 as in Skylake servers and later; newer releases call it X86_V4."""
    return not {"AVX512_SKX", "X86_V4"}.isdisjoint(_found())


def _found() -> list[str]:
    """Return the names of the instruction sets that numpy was built for or found."""
    config: Any = np.show_config(mode="dicts")
    found = config["SIMD Extensions"]
    return [*found["baseline"], *found["found"]]
