from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.scheduler.engine import make_work
from worker.brokers.lanes import LONG, PLACES, SHORT, Entry, Lanes, size_bytes
from worker.scheduler.works import Work


def drain(lanes: Lanes, lane: int = SHORT) -> list[str]:
    """Read all works of a lane one after the other; return their leases in order."""
    order = []
    while (entry := lanes.hand_over(lane)) is not None:
        order.append(entry.work.generation.lease)
        assert lanes.answered(lane) == (entry, True)
    return order


def filled(*works: Work, lane: int = SHORT) -> Lanes:
    lanes = Lanes(2)
    for work in works:
        lanes.add(work, lane)
    return lanes


# ---- turns -----------------------------------------------------------------------------------------------------------


def test_turns_go_by_account() -> None:
    lanes = filled(*(make_work(f"{account}{n}", account=account) for account in "abc" for n in range(3)))
    assert drain(lanes) == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_one_accounts_thousand_delay_another_by_one() -> None:
    lanes = filled(*(make_work(f"a{n}", account="a", prompt=100_000) for n in range(1000)), lane=LONG)
    assert lanes.hand_over(LONG) is not None
    lanes.add(make_work("b", account="b"), LONG)
    lanes.add(make_work("c", account="c"), SHORT)
    assert (entry := lanes.hand_over(SHORT)) is not None and entry.work.generation.lease == "c"
    assert drain_from(lanes, LONG)[:2] == ["a1", "b"]


def drain_from(lanes: Lanes, lane: int) -> list[str]:
    lanes.answered(lane)
    return drain(lanes, lane)


def test_within_a_turn_priority_goes_before_size_and_size_before_age() -> None:
    lanes = filled(
        make_work("long", prompt=100),
        make_work("short", prompt=10),
        make_work("short too", prompt=10),
        make_work("urgent", prompt=1000, priority=9),
    )
    assert drain(lanes) == ["urgent", "short", "short too", "long"]


def test_a_new_priority_counts_and_the_same_again_changes_nothing() -> None:
    lanes = filled(*(make_work(name) for name in "abc"))
    assert lanes.prioritize("c", 9)
    assert lanes.prioritize("a", 5)
    assert drain(lanes) == ["c", "a", "b"]


def test_a_work_put_back_comes_before_all_others() -> None:
    lanes = filled(*(make_work(f"{account}{n}", account=account) for account in "ab" for n in range(2)))
    assert (entry := lanes.hand_over(SHORT)) is not None
    lanes.put_back(SHORT)
    assert lanes.prioritize("a0", 0)
    assert drain(lanes) == ["a0", "b0", "a1", "b1"]
    assert entry.work.priority == 0


def test_ids_that_were_read_before_are_no_work() -> None:
    generation = make_work("a", prompt=1000).generation
    assert size_bytes(generation) == 1000
    read = type(generation)(lease="a", prompt=generation.prompt, sampling=generation.sampling, max_tokens=1)
    assert size_bytes(read) == 1000
    assert size_bytes(type(generation)(**{**_fields(read), "prompt_ids": b"\1\0\0\0"})) == 0


def _fields(generation: object) -> dict[str, object]:
    return {name: getattr(generation, name) for name in generation.__struct_fields__}  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9), st.integers(1, 5)), max_size=40))
@settings(max_examples=50)
def test_nobody_waits_for_two_works_of_another_between_two_turns(drawn: list[tuple[str, int, int]]) -> None:
    lanes = filled(
        *(make_work(f"{account}{n}", account, priority, size) for n, (account, priority, size) in enumerate(drawn))
    )
    order = [lease[0] for lease in drain(lanes)]
    assert Counter(order) == Counter(account for account, _, _ in drawn)
    left = Counter(order)
    for before, after in pairwise(order):
        left[before] -= 1
        assert before != after or not any(count for account, count in left.items() if account != before)


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("happening", ["handed", "answered", "cancelled", "put_back"])
def test_the_table_is_the_law(place: str, happening: str) -> None:
    entry = Entry(make_work("a"), SHORT, 0, place=place)  # type: ignore[arg-type]
    if happening in PLACES[place]:  # type: ignore[index]
        entry.follow(happening)  # type: ignore[arg-type]
        assert entry.place == PLACES[place][happening]  # type: ignore[index]
    else:
        with pytest.raises(AssertionError):
            entry.follow(happening)  # type: ignore[arg-type]


def test_the_answer_to_a_cancelled_work_is_dropped() -> None:
    lanes = filled(make_work("a"))
    entry = lanes.hand_over(SHORT)
    assert lanes.cancel("a")
    assert not lanes.cancel("a")
    assert not lanes.prioritize("a", 1)
    assert lanes.in_hand(SHORT) is entry
    assert lanes.answered(SHORT) == (entry, False)
    assert lanes.in_hand(SHORT) is None


def test_a_lease_may_come_again_while_its_cancelled_work_is_in_hand() -> None:
    lanes = filled(make_work("a"))
    lanes.hand_over(SHORT)
    lanes.clear()
    lanes.add(make_work("a"), SHORT)
    _, wanted = lanes.answered(SHORT)
    assert not wanted
    assert drain(lanes) == ["a"]


def test_a_new_priority_of_a_work_in_hand_is_kept_for_the_engine() -> None:
    lanes = filled(make_work("a"))
    lanes.hand_over(SHORT)
    assert lanes.prioritize("a", 8)
    entry, wanted = lanes.answered(SHORT)
    assert wanted
    assert (entry.priority_sent, entry.work.priority) == (5, 8)


def test_void_places_do_not_pile_up() -> None:
    lanes = filled(make_work("a"))
    for number in range(10_000):
        assert lanes.prioritize("a", number % 10)
        lanes.add(make_work(f"b{number}", priority=0), SHORT)
        assert lanes.cancel(f"b{number}")
    (line,) = lanes._lines[SHORT].values()
    assert len(line._heap) < 40
    assert drain(lanes) == ["a"]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, each work is read once, or was cancelled, and one at a time per lane."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes(2)
        self.waiting: list[dict[str, str]] = [{}, {}]
        self.hands: list[str | None] = [None, None]
        self.dropped = [False, False]
        self.count = 0

    @rule(
        account=st.sampled_from("abc"),
        priority=st.integers(0, 9),
        size=st.integers(1, 9),
        lane=st.sampled_from([SHORT, LONG]),
    )
    def add(self, account: str, priority: int, size: int, lane: int) -> None:
        lease, self.count = f"{account}{self.count}", self.count + 1
        self.lanes.add(make_work(lease, account, priority, size), lane)
        self.waiting[lane][lease] = account

    @rule(lane=st.sampled_from([SHORT, LONG]))
    def hand_over(self, lane: int) -> None:
        entry = self.lanes.hand_over(lane)
        if self.hands[lane] is not None or not self.waiting[lane]:
            assert entry is None
            return
        assert entry is not None
        lease = entry.work.generation.lease
        del self.waiting[lane][lease]
        self.hands[lane], self.dropped[lane] = lease, False

    @precondition(lambda self: any(self.hands))
    @rule(data=st.data(), again=st.booleans())
    def end(self, data: st.DataObject, again: bool) -> None:
        lane = data.draw(st.sampled_from([lane for lane in (SHORT, LONG) if self.hands[lane]]))
        lease = self.hands[lane]
        assert lease is not None
        self.hands[lane] = None
        if again and not self.dropped[lane]:
            self.lanes.put_back(lane)
            self.waiting[lane][lease] = lease[0]
            return
        entry, wanted = self.lanes.answered(lane)
        assert (entry.work.generation.lease, wanted) == (lease, not self.dropped[lane])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([f"{a}{n}" for n in range(self.count) for a in "abc"] or ["none"]))
        here = any(lease in waiting for waiting in self.waiting)
        for lane in (SHORT, LONG):
            self.waiting[lane].pop(lease, None)
            if self.hands[lane] == lease and not self.dropped[lane]:
                here = self.dropped[lane] = True
        assert self.lanes.cancel(lease) == here

    @rule(data=st.data(), priority=st.integers(0, 9))
    def prioritize(self, data: st.DataObject, priority: int) -> None:
        waiting = [*self.waiting[SHORT], *self.waiting[LONG]]
        if waiting:
            assert self.lanes.prioritize(data.draw(st.sampled_from(waiting)), priority)

    @rule()
    def clear(self) -> None:
        self.lanes.clear()
        self.waiting = [{}, {}]
        self.dropped = [True, True]

    @invariant()
    def counts_agree(self) -> None:
        live = sum(1 for lane in (SHORT, LONG) if self.hands[lane] and not self.dropped[lane])
        assert len(self.lanes) == live + sum(map(len, self.waiting))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
