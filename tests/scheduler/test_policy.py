from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduler.engine import prepared_work
from worker.engines.base import Capacity
from worker.scheduler.policy import LOOK_PAST_MAX, Policy, Vacancy
from worker.scheduler.works import Schedule

SCHEDULE = Schedule(prefill_tokens_per_step=64, priority_ageing_s=10.0, queue_skips_max=2)


def vacancy(
    slots: int = 1000, kv: int = 1_000_000, running: int = 0, pending: int = 0, budget: int = 64, solo: bool = False
) -> Vacancy:
    capacity = Capacity(slots, 1000, kv, 1_000_000, 16)
    return Vacancy(slots, lambda prepared: capacity.fits(prepared.tokens_reserved), running, pending, budget, solo)


@dataclass
class Bench:
    """A policy with works put in by hand."""

    policy: Policy
    now_s: float = 0.0

    def add(
        self,
        lease: str,
        account: str = "p",
        priority: int = 5,
        prompt: int = 4,
        max_tokens: int = 4,
        solo: bool = False,
    ) -> None:
        work = prepared_work(lease, account, priority, prompt, max_tokens, solo)
        self.policy.add(work, work.prepared, self.now_s)

    def pop(self, where: Vacancy | None = None) -> str | None:
        waiting = self.policy.pop(self.policy.select(self.now_s), where or vacancy())
        return None if waiting is None else waiting.lease

    def pop_all(self, where: Vacancy | None = None) -> list[str]:
        """Pop all in one selection, charging like the loop does."""
        selection, ids = self.policy.select(self.now_s), []
        while (waiting := self.policy.pop(selection, where or vacancy())) is not None:
            self.policy.ledger.charge(waiting.work.account, prefilled=waiting.prefill_tokens)
            ids.append(waiting.lease)
        return ids

    def order(self) -> list[str]:
        return [waiting.lease for waiting in self.policy.order(self.now_s)]


@pytest.fixture
def bench() -> Bench:
    return Bench(Policy(SCHEDULE))


def test_nobody_waits(bench: Bench) -> None:
    assert bench.pop() is None
    assert bench.order() == []


def test_first_in_first_out_within_an_account(bench: Bench) -> None:
    for name in "abc":
        bench.add(name)
    assert bench.pop_all() == ["a", "b", "c"]


def test_higher_priority_first(bench: Bench) -> None:
    bench.add("low", priority=0)
    bench.add("high", account="q", priority=9)
    bench.add("middle")
    assert bench.pop_all() == ["high", "middle", "low"]


def test_least_served_account_first(bench: Bench) -> None:
    for number in range(3):
        bench.add(f"many{number}", account="many", prompt=10)
    bench.add("few", account="few", prompt=10)
    assert bench.pop_all() == ["many0", "few", "many1", "many2"]


def test_an_account_with_small_works_gets_more_of_them(bench: Bench) -> None:
    for number in range(4):
        bench.add(f"s{number}", account="small", prompt=10)
        bench.add(f"L{number}", account="large", prompt=20)
    assert bench.pop_all() == ["s0", "L0", "s1", "L1", "s2", "s3", "L2", "L3"]


def test_ageing_lifts_a_lane_by_one_level_per_period(bench: Bench) -> None:
    bench.add("old", account="a", priority=4)
    bench.now_s = 9.9
    bench.add("young", account="b", priority=5)
    assert bench.order() == ["young", "old"]
    bench.now_s = 10.0
    assert bench.order() == ["old", "young"]


def test_a_lane_that_was_served_ages_anew(bench: Bench) -> None:
    bench.add("old1", account="a", priority=4)
    bench.add("old2", account="a", priority=4)
    bench.now_s = 15.0
    bench.add("young", account="b", priority=5)
    assert bench.pop() == "old1"
    assert bench.order() == ["young", "old2"]


def test_under_a_flood_of_the_highest_priority_the_lowest_is_served_in_time(bench: Bench) -> None:
    bench.add("patient", account="a", priority=0)
    for number in range(1000):
        bench.add(f"flood{number}", account=f"f{number % 7}", priority=9)
        bench.now_s += 1.0
        if bench.pop() == "patient":
            break
    assert bench.now_s <= (9 - 0 + 1) * SCHEDULE.priority_ageing_s + 1


def test_ageing_goes_on_above_the_highest_priority(bench: Bench) -> None:
    """Newcomers enter level with the least served; without ageing beyond 9 they would always be first."""
    bench.add("charged0", account="charged", priority=9)
    bench.add("charged1", account="charged", priority=9)
    bench.pop()
    bench.policy.ledger.charge("charged", decoded=1_000_000)
    bench.add("anchor", account="anchor", priority=0, prompt=10_000)
    for number in range(100):
        bench.add(f"new{number}", account=f"n{number}", priority=9)
        bench.now_s += 1.0
        if bench.pop(vacancy(kv=1000)) == "charged1":
            break
    assert bench.now_s <= SCHEDULE.priority_ageing_s + 2


def test_removed_works_are_gone(bench: Bench) -> None:
    for name in "abc":
        bench.add(name)
    assert bench.policy.remove("b")
    assert not bench.policy.remove("b")
    assert "b" not in bench.policy
    assert bench.pop_all() == ["a", "c"]
    assert len(bench.policy) == 0


def test_update_moves_a_work_behind_those_of_its_new_priority(bench: Bench) -> None:
    bench.add("a")
    bench.add("b", priority=7)
    bench.add("c")
    bench.policy.prioritize("a", 7, bench.now_s)
    bench.policy.prioritize("unknown", 7, bench.now_s)
    assert bench.pop_all() == ["b", "a", "c"]


def test_a_work_that_was_moved_ages_anew(bench: Bench) -> None:
    bench.add("old", account="a", priority=0)
    bench.now_s = 100.0
    bench.add("new", account="b", priority=2)
    assert bench.order() == ["old", "new"]
    bench.policy.prioritize("old", 1, bench.now_s)
    assert bench.order() == ["new", "old"]


def test_an_account_whose_last_work_was_removed_is_gone(bench: Bench) -> None:
    """A newcomer starts level with those who are here, not with one who was served nothing and left the queue."""
    bench.add("a", account="a")
    bench.add("b1", account="b")
    bench.policy.ledger.charge("b", decoded=100)
    bench.policy.remove("a")
    bench.add("b2", account="b")
    bench.add("c", account="c")
    assert bench.policy.ledger.served("c") == bench.policy.ledger.served("b") > 0


def test_every_change_of_the_order_is_a_revision(bench: Bench) -> None:
    revisions = [bench.policy.revision]

    def changed() -> bool:
        revisions.append(bench.policy.revision)
        return revisions[-1] != revisions[-2]

    bench.add("a")
    assert changed()
    bench.policy.prioritize("a", 5, 0.0)
    bench.policy.remove("unknown")
    bench.order()
    assert not changed()
    bench.policy.prioritize("a", 6, 0.0)
    assert changed()
    bench.pop()
    assert changed()
    bench.add("b")
    changed()
    bench.policy.remove("b")
    assert changed()


@pytest.mark.parametrize(
    "closed",
    [vacancy(slots=0), vacancy(pending=64), vacancy(pending=100), vacancy(solo=True, running=1)],
    ids=["no slot", "a whole step of prompts", "more than that", "solo"],
)
def test_nothing_starts_without_a_vacancy(bench: Bench, closed: Vacancy) -> None:
    bench.add("a", prompt=1)
    assert bench.pop(closed) is None
    assert bench.pop(vacancy(pending=63)) == "a"


def test_a_work_that_does_not_fit_is_passed_a_bounded_number_of_times(bench: Bench) -> None:
    bench.add("large", account="a", prompt=1000)
    for number in range(5):
        bench.add(f"small{number}", account=f"p{number}")
    tight = vacancy(kv=160, running=1)
    popped = [bench.pop(tight) for _ in range(5)]
    assert popped == ["small0", "small1", None, None, None]
    assert bench.pop(vacancy(kv=16_000)) == "large"
    assert bench.pop(tight) == "small2"


def test_skips_are_counted_within_one_selection_too(bench: Bench) -> None:
    bench.add("large", account="a", prompt=1000)
    for number in range(5):
        bench.add(f"small{number}", account=f"p{number}")
    assert bench.pop_all(vacancy(kv=160, running=1)) == ["small0", "small1"]


def test_within_a_lane_nobody_passes(bench: Bench) -> None:
    bench.add("large", prompt=1000)
    bench.add("small")
    assert bench.pop(vacancy(kv=160, running=1)) is None


def test_the_search_for_something_that_fits_is_bounded(bench: Bench) -> None:
    for number in range(LOOK_PAST_MAX + 1):
        bench.add(f"large{number}", account=f"a{number}", prompt=1000)
    bench.add("small", account="z")
    assert bench.pop(vacancy(kv=160, running=1)) is None


def test_solo_waits_for_an_empty_engine_and_is_passed_a_bounded_number_of_times(bench: Bench) -> None:
    bench.add("solo", account="a", solo=True)
    for number in range(4):
        bench.add(f"other{number}", account=f"p{number}")
    assert [bench.pop(vacancy(running=1)) for _ in range(3)] == ["other0", "other1", None]
    assert bench.pop(vacancy(running=0)) == "solo"
    assert bench.pop(vacancy(running=1)) == "other2"


# ---- against a slow and obvious model --------------------------------------------------------------------------------


@dataclass
class Model:
    """The rules in their plainest form: look at every lane's head, pop the best, quadratic in everything."""

    now_s: float

    def order(self, works: list[tuple[str, str, int, int, float]]) -> list[str]:
        left, result = list(works), []
        charged = {account: 0 for _, account, _, _, _ in works}
        last: dict[tuple[str, int], float] = {}
        while left:
            heads: dict[tuple[str, int], int] = {}
            for index, (_, account, priority, _, _) in enumerate(left):
                heads.setdefault((account, priority), index)

            def key(index: int) -> tuple[int, int, int]:
                _, account, priority, _, since_s = left[index]
                unserved_s = self.now_s - max(since_s, last.get((account, priority), since_s))
                return -(priority + int(unserved_s / SCHEDULE.priority_ageing_s)), charged[account], index

            best = min(heads.values(), key=key)
            name, account, priority, prompt, _ = left.pop(best)
            charged[account] += prompt
            last[account, priority] = self.now_s
            result.append(name)
        return result


queues = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(3, 6), st.integers(1, 30), st.integers(0, 15)), max_size=30
)


@given(queues)
def test_the_order_is_that_of_the_model_and_that_of_popping(queue: list[tuple[str, int, int, int]]) -> None:
    bench, works = Bench(Policy(SCHEDULE)), []
    for number, (account, priority, prompt, pause_s) in enumerate(queue):
        bench.now_s += pause_s
        bench.add(f"w{number}", account, priority, prompt)
        works.append((f"w{number}", account, priority, prompt, bench.now_s))
    order = bench.order()
    assert order == Model(bench.now_s).order(works)
    assert bench.order() == order, "looking changes nothing"
    assert bench.pop_all() == order
    assert len(bench.policy) == 0


def test_paused_works_come_first_again_the_oldest_before_the_rest(bench: Bench) -> None:
    for name in "abcd":
        bench.add(name, max_tokens=40, solo=name == "b")
    selection = bench.policy.select(bench.now_s)
    popped = {name: bench.policy.pop(selection, vacancy()) for name in "abc"}
    revision = bench.policy.revision
    # They are paused in another order than they came.
    for name, produced in (("b", 5), ("a", 9), ("c", 1)):
        waiting = popped[name]
        assert waiting is not None
        bench.policy.requeue(waiting, produced, bench.now_s + 1)
        assert (waiting.decoded, waiting.since_s, waiting.skips, waiting.work.solo) == (produced, 1.0, 0, False)
        assert waiting.prefill_tokens == 4 + produced
        assert waiting.output_tokens_max == 40 - produced
    assert bench.policy.revision == revision + 3
    assert bench.order() == ["a", "b", "c", "d"]


def test_a_work_that_was_popped_and_cannot_start_yet_is_first_in_its_lane_again(bench: Bench) -> None:
    for name in "ab":
        bench.add(name)
    popped = bench.policy.pop(bench.policy.select(bench.now_s), vacancy())
    assert popped is not None
    revision = bench.policy.revision
    bench.policy.give_back(popped)
    assert bench.policy.revision == revision + 1
    assert bench.order() == ["a", "b"]
    assert (popped.decoded, popped.skips) == (0, 0)
