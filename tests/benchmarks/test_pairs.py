"""The median of pairs and its interval."""

from __future__ import annotations

import random
import statistics

import pytest

from tests.benchmarks.pairs import Interval, coverage, interval, verdict


def test_the_coverage_is_that_of_the_tables() -> None:
    """Of the sign test: https://en.wikipedia.org/wiki/Sign_test, two-sided."""
    assert coverage(5, 0) == 1 - 2 / 32
    assert coverage(9, 1) == 1 - 2 * (1 + 9) / 512
    assert coverage(9, 2) == 1 - 2 * (1 + 9 + 36) / 512


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 0, 0), (2, 0, 1), (4, 0, 3), (5, 0, 4), (7, 0, 6), (8, 1, 6), (9, 1, 7), (20, 5, 14)]
)
def test_the_interval_leaves_out_as_much_as_the_confidence_allows(count: int, low: int, high: int) -> None:
    values = [float(number) for number in range(count)]
    random.Random(count).shuffle(values)
    assert interval(values) == Interval(statistics.median(values), float(low), float(high))


def test_the_interval_holds_the_median_of_skewed_values_often_enough() -> None:
    draw = random.Random(5)
    held = 0
    for _ in range(2000):
        found = interval([draw.lognormvariate(0, 1) for _ in range(9)])
        held += found.low <= 1.0 <= found.high
    assert 0.94 < held / 2000 < 0.98


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.2] * 8, "too few pairs"),
        ([1.2] * 9, "costs more"),
        ([0.8] * 9, "unchanged"),
        ([1.02] * 2 + [1.2] * 7, "unchanged"),
        ([1.02] * 1 + [1.2] * 8, "costs more"),
        ([1.0] * 7 + [9.0] * 2, "unchanged"),
    ],
)
def test_unchanged_is_an_interval_that_contains_the_limit_or_lies_below(ratios: list[float], expected: str) -> None:
    assert verdict(ratios) == expected
