"""Garbage collection of processes that serve."""

from __future__ import annotations

import gc

THRESHOLDS = (50_000, 20, 100)
"""Allocations before a young collection, young ones before a middle one, middle ones before a full one."""


def calm_gc() -> None:
    """Make full collections rare, in a process that has finished its setup.

    A full collection walks every object, be it of a model or of thousands of connections, and stops all streams for
    hundreds of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
