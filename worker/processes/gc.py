"""Garbage collection of processes that serve."""

from __future__ import annotations

import gc

THRESHOLDS = (10_000, 5, 2_000)
"""Allocations before a young collection, young ones before a middle one, middle ones before a full one.

Each collection takes about a microsecond per object that it walks. A middle one walks what outlived the young ones
before it, which are thousands of objects while many requests are served at once."""


def calm_gc() -> None:
    """Make full collections rare, in a process that has finished its setup.

    A full collection walks every object, be it of a model or of thousands of connections, and stops all streams for
    hundreds of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
