from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.scheduler.fairness import DECODE_WEIGHT, IDLE_ACCOUNTS_MAX, PREFILL_WEIGHT, Ledger


def test_tokens_are_weighed() -> None:
    ledger = Ledger()
    ledger.enter("a")
    ledger.charge("a", prefilled=10)
    ledger.charge("a", decoded=3)
    assert ledger.served("a") == 10 * PREFILL_WEIGHT + 3 * DECODE_WEIGHT


def test_a_newcomer_starts_level_with_the_least_served() -> None:
    ledger = Ledger()
    ledger.enter("a")
    ledger.charge("a", prefilled=1000)
    ledger.enter("b")
    assert ledger.served("b") == 1000
    ledger.charge("b", prefilled=500)
    ledger.enter("c")
    assert ledger.served("c") == 1000


def test_nobody_saves_up_credit_by_staying_away() -> None:
    ledger = Ledger()
    ledger.enter("away")
    ledger.enter("busy")
    ledger.leave("away")
    ledger.charge("busy", decoded=5000)
    ledger.enter("away")
    assert ledger.served("away") == ledger.served("busy")


def test_leaving_and_coming_back_wipes_no_debt() -> None:
    ledger = Ledger()
    ledger.enter("a")
    ledger.enter("b")
    ledger.charge("a", decoded=100)
    ledger.leave("a")
    ledger.enter("a")
    assert ledger.served("a") == ledger.served("b") + 100 * DECODE_WEIGHT


def test_after_a_pause_all_start_where_the_last_one_left() -> None:
    ledger = Ledger()
    ledger.enter("a")
    ledger.charge("a", prefilled=70)
    ledger.leave("a")
    ledger.enter("b")
    assert ledger.served("b") == 70


def test_present_until_the_last_work_is_gone() -> None:
    ledger = Ledger()
    ledger.enter("a")
    ledger.enter("a")
    ledger.charge("a", prefilled=5)
    ledger.leave("a")
    assert ledger.served("a") == 5


def test_tokens_count_per_share() -> None:
    ledger = Ledger()
    ledger.enter("one")
    ledger.enter("four", 4.0)
    ledger.charge("one", decoded=10)
    ledger.charge("four", decoded=10)
    assert (ledger.served("one"), ledger.served("four")) == (10 * DECODE_WEIGHT, 2.5 * DECODE_WEIGHT)
    trial = ledger.trial()
    trial.charge("four", decoded=10)
    assert trial.served("four") == 5 * DECODE_WEIGHT


def test_a_new_weight_holds_from_the_next_work_on() -> None:
    ledger = Ledger()
    ledger.enter("a")
    ledger.charge("a", prefilled=8)
    ledger.enter("a", 8.0)
    ledger.charge("a", prefilled=8)
    assert ledger.served("a") == 9


def test_a_trial_leaves_the_ledger_alone() -> None:
    ledger = Ledger()
    ledger.enter("a")
    trial = ledger.trial()
    trial.charge("a", prefilled=9)
    assert (ledger.served("a"), trial.served("a")) == (0, 9)


def test_memory_of_those_who_left_is_bounded() -> None:
    ledger = Ledger()
    ledger.enter("stays")
    for number in range(IDLE_ACCOUNTS_MAX + 5):
        ledger.enter(f"p{number}")
        ledger.charge(f"p{number}", prefilled=100)
        ledger.leave(f"p{number}")
    ledger.enter("p0")
    ledger.enter(f"p{IDLE_ACCOUNTS_MAX + 4}")
    assert ledger.served("p0") == 0
    assert ledger.served(f"p{IDLE_ACCOUNTS_MAX + 4}") == 100


principals = st.sampled_from("abcd")


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "charge"]), principals, st.integers(0, 50))))
def test_counters_never_fall_and_newcomers_are_never_below_the_least(
    operations: list[tuple[str, str, int]],
) -> None:
    ledger, present, before = Ledger(), dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 0)
    for operation, account, tokens in operations:
        others = [ledger.served(other) for other in present if present[other] and other != account]
        if operation == "enter":
            ledger.enter(account)
            present[account] += 1
            if present[account] == 1 and others:
                assert ledger.served(account) >= min(others)
        elif present[account] and operation == "leave":
            ledger.leave(account)
            present[account] -= 1
        elif present[account]:
            ledger.charge(account, prefilled=tokens)
        if present[account]:
            assert ledger.served(account) >= before[account]
            before[account] = ledger.served(account)
