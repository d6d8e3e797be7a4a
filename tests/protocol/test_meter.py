"""A burst of one second's worth passes, then as many as come back."""

from __future__ import annotations

from worker.protocol.meter import Meter

PER_S = 10


def test_a_burst_passes_and_then_it_is_even() -> None:
    meter = Meter(PER_S, 500.0)
    assert [meter.take(500.0) for _ in range(PER_S + 2)] == [True] * PER_S + [False] * 2
    assert not meter.take(599.0)
    assert meter.take(600.0)
    assert not meter.take(601.0)


def test_it_never_holds_more_than_a_second_is_worth() -> None:
    meter = Meter(PER_S, 0.0)
    assert [meter.take(3_600_000.0) for _ in range(PER_S + 1)] == [True] * PER_S + [False]
