"""What the machine has that an engine must know before it reserves anything."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the size of the machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def lacks_avx2() -> bool:
    """Tell whether this is an x86-64 CPU without AVX2, from what numpy found; its newer releases say X86_V3."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    config: Any = np.show_config(mode="dicts")
    found = config["SIMD Extensions"]
    return {"AVX2", "X86_V3"}.isdisjoint([*found["baseline"], *found["found"]])
