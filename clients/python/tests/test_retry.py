"""Pauses between attempts, by a clock that the tests set."""

from __future__ import annotations

import pytest
from clock import Clock
from hypothesis import given
from hypothesis import strategies as st
from jobwire_client import ConnectionFailed, Refused
from jobwire_client.retry import ATTEMPT_S_MAX, Retry

CUT = ConnectionError("cut")
HOUR_S = 3600.0


def test_pauses_grow_to_a_limit_and_an_outage_that_is_over_starts_them_anew() -> None:
    retry = Retry(HOUR_S, 0.25, 10.0)
    for _ in range(2):
        for n in range(40):
            longest = min(0.25 * 2**n, 10.0)
            assert longest / 2 <= retry.delay_s(CUT) <= longest
        retry.clear()


def test_an_outage_ends_in_time_and_says_why(clock: Clock) -> None:
    retry = Retry(60.0, 0.25, 10.0)
    started_s = clock.now_s
    with pytest.raises(ConnectionFailed, match="No answer for 60 s: cut") as failed:
        while True:
            clock.advance(retry.delay_s(CUT) + 1.0)
    assert failed.value.__cause__ is CUT
    assert 45 <= clock.now_s - started_s <= 75


def test_an_error_of_our_own_is_raised_as_it_is() -> None:
    refusal = Refused("Busy", "overloaded")
    with pytest.raises(Refused) as refused:
        Retry(1.0, 0.25, 10.0).delay_s(refusal, at_least_s=2.0)
    assert refused.value is refusal


@given(at_least_s=st.floats(0.0, 50.0))
def test_clients_that_are_told_the_same_time_do_not_come_back_at_once(at_least_s: float) -> None:
    delays_s = {Retry(60.0, 0.25, 10.0).delay_s(CUT, at_least_s) for _ in range(20)}
    assert len(delays_s) > 10
    assert min(delays_s) >= at_least_s


def test_a_machine_that_slept_in_an_outage_goes_on_trying(clock: Clock) -> None:
    retry = Retry(60.0, 0.25, 10.0)
    clock.advance(retry.delay_s(CUT))
    clock.advance(HOUR_S)
    woken_s = clock.now_s
    with pytest.raises(ConnectionFailed):
        while True:
            clock.advance(retry.delay_s(CUT))
    # The sleep counts as one attempt, of at most 30 s; the rest of the 60 s is left, but for a pause that is too long.
    assert 60 - ATTEMPT_S_MAX - 11 <= clock.now_s - woken_s <= 60 - ATTEMPT_S_MAX


def test_time_in_which_nothing_was_wanted_is_no_outage(clock: Clock) -> None:
    """A connection came back for a moment in which nothing happened; the next cut is a day later."""
    retry = Retry(60.0, 0.25, 10.0)
    retry.delay_s(CUT)
    clock.advance(24 * HOUR_S)
    assert retry.delay_s(CUT) < 1.0
