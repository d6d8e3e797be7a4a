"""What pairs of measurements say: the median of their ratios, and an interval that holds it.

The interval is free of any assumption about how the ratios are distributed: it reaches from the k-th smallest ratio to
the k-th largest, with the largest k for which it holds the true median with the confidence that is asked for. Each
ratio lies below the true median with a chance of one half, so that chance is a sum of binomial coefficients. The
smallest and the largest of 5 ratios are enough for 90 %; 9 ratios leave out one at each end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.90
"""Chance, at least, that the interval holds the true median."""

UNCHANGED_MAX = 1.03
"""A cost is unchanged if it may be at most this many times what it was before."""

PAIRS_MIN = 9
"""Fewer pairs allow no verdict: their interval is so wide that nearly everything would be unchanged."""


@dataclass(frozen=True)
class Interval:
    """The median of some ratios, and the interval around it."""

    median: float
    low: float
    high: float


def coverage(count: int, left_out: int) -> float:
    """Return the chance that an interval holds the median that leaves out some of `count` values at each end."""
    outside = sum(math.comb(count, below) for below in range(left_out + 1))
    return 1 - math.ldexp(outside, 1 - count)


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the median and its interval. Too few values for the confidence give the whole of their range."""
    ordered = sorted(values)
    left_out = 0
    while 2 * (left_out + 1) < len(ordered) and coverage(len(ordered), left_out + 1) >= confidence:
        left_out += 1
    return Interval(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out])


def verdict(ratios: Sequence[float]) -> str:
    """Return whether the costs are unchanged: the interval of their ratios contains 1.03, or lies below it."""
    if len(ratios) < PAIRS_MIN:
        return "too few pairs"
    return "unchanged" if interval(ratios).low <= UNCHANGED_MAX else "costs more"
