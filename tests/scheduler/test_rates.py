from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.scheduler.rates import GAP_WINDOW_S, WINDOW_S, Mean, Rates


def test_nothing_measured_is_zero() -> None:
    rates = Rates()
    assert (rates.step_ms, rates.decode_tokens_per_s, rates.prefill_tokens_per_s) == (0, 0, 0)
    assert rates.wait_ms(100) is None


def test_a_steady_engine_is_measured_exactly() -> None:
    rates = Rates()
    for _ in range(1000):
        rates.step(0.02, decoded=4, prefilled=0)
        rates.step(0.04, decoded=4, prefilled=100)
    assert rates.step_ms == pytest.approx(30, rel=0.01)
    assert rates.decode_tokens_per_s == pytest.approx(8 / 0.06, rel=0.01)
    assert rates.prefill_tokens_per_s == pytest.approx(100 / 0.04)


def test_a_change_of_speed_shows_within_the_window() -> None:
    rates = Rates()
    for _ in range(1000):
        rates.step(0.1, decoded=1, prefilled=0)
    for _ in range(round(WINDOW_S / 0.1)):
        rates.step(0.1, decoded=2, prefilled=0)
    assert rates.decode_tokens_per_s == pytest.approx(20 - 10 * math.exp(-1), rel=0.02)


def test_the_longest_gap_between_steps_is_that_of_the_last_seconds() -> None:
    rates = Rates()
    for now_s in (1.0, 1.1, 1.5, 1.6):
        rates.stepped(now_s)
    assert rates.step_gap_ms == pytest.approx(400)
    rates.stepped(1.6 + 2 * GAP_WINDOW_S)
    assert rates.step_gap_ms == pytest.approx(2000 * GAP_WINDOW_S)
    for tenth in range(1, 11):
        rates.stepped(3.6 + tenth / 10)
    assert rates.step_gap_ms == pytest.approx(2000 * GAP_WINDOW_S), "the window before counts as well"
    for tenth in range(11, 25):
        rates.stepped(3.6 + tenth / 10)
    assert rates.step_gap_ms == pytest.approx(100)


def test_a_pause_in_which_nothing_runs_is_no_gap() -> None:
    rates = Rates()
    for now_s in (1.0, 1.2):
        rates.stepped(now_s)
    rates.begun()
    for now_s in (61.0, 61.1):
        rates.stepped(now_s)
    assert rates.step_gap_ms == pytest.approx(100), "what was long ago does not count"


def test_expected_output_is_what_others_had_but_never_more_than_allowed() -> None:
    rates = Rates()
    assert rates.output_tokens(500) == 500
    rates.finished(40)
    assert rates.output_tokens(500) == 40
    assert rates.output_tokens(7) == 7


def test_no_wait_is_known_before_a_work_has_finished() -> None:
    rates = Rates()
    rates.step(1.0, decoded=10, prefilled=0)
    assert rates.wait_ms(0) is None
    rates.finished(20)
    assert rates.wait_ms(0) == 2000
    assert rates.wait_ms(30) == 5000


@given(st.lists(st.tuples(st.floats(1e-6, 100), st.integers(0, 100)), min_size=1))
def test_a_mean_stays_between_the_extremes(terms: list[tuple[float, int]]) -> None:
    mean = Mean()
    for seconds, count in terms:
        mean.add(count, seconds, seconds)
    rates = [count / seconds for seconds, count in terms]
    assert min(rates) * 0.999 <= mean.value <= max(rates) * 1.001
