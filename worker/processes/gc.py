"""Garbage collection of processes that serve."""

from __future__ import annotations

import gc

THRESHOLDS = (50_000, 20, 100)


def calm_gc() -> None:
    """Make full collections rare, in a process that has set itself up.

    One walks every object, be it of a model's bookkeeping or of thousands of connections, and stops all streams
    meanwhile, for hundreds of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
