"""Slots: which one a sequence gets, and whose prefix it shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.base import Capacity
from worker.engines.slots import SHARED_TOKENS_MIN, Placement, Slots, common_prefix

LONG = list(range(100, 100 + 2 * SHARED_TOKENS_MIN))


def placed(held: dict[int, list[int]], tokens: list[int], busy: dict[int, list[int]] | None = None) -> Placement:
    """Place into slots 0 to 7, of which `held` were left by sequences in that order and `busy` are taken."""
    slots = Slots(8)
    for slot in range(8):
        assert slots.place([1], {}).slot == slot
    for slot in range(8):
        if slot not in (busy or {}) and slot not in held:
            slots.give_back(slot, [])
    for slot, tokens_held in held.items():
        slots.give_back(slot, tokens_held)
    return slots.place(tokens, busy or {})


def test_each_slot_has_the_cache_of_a_whole_context() -> None:
    slots = Slots(3)
    slots.place([1], {})
    assert slots.capacity(50) == Capacity(2, 3, 100, 150, 50)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_the_common_prefix_is_what_counting_says(one: list[int], two: list[int], share: int) -> None:
    two = one[:share] + two
    count = 0
    while count < min(len(one), len(two)) and one[count] == two[count]:
        count += 1
    assert common_prefix(one, two) == count


def test_what_a_slot_still_holds_is_found() -> None:
    assert placed({5: [1, 2, 3], 6: [1, 2, 4, 5]}, [1, 2, 4, 9]) == Placement(6, 6, 3)


def test_the_last_token_is_never_shared() -> None:
    assert placed({3: [1, 2, 3, 4]}, [1, 2, 3]) == Placement(3, 3, 2)
    assert placed({3: [1]}, [1]).shared == 0


def test_with_nothing_to_share_the_slot_that_was_free_for_longest_is_taken() -> None:
    everything = {slot: [slot] for slot in (4, 2, 0, 1, 3, 7, 6, 5)}
    assert placed(everything, [99, 98]) == Placement(4, 4, 0)


def test_beside_others_the_slot_that_leaves_the_fewest_gaps_is_taken() -> None:
    assert placed({}, [99, 98], {3: [1], 4: [1]}).slot == 2
    assert placed({}, [99, 98], {0: [1], 1: [1], 3: [1]}).slot == 2
    assert placed({}, [99, 98], {6: [1], 7: [1]}).slot == 5


def test_a_long_prefix_is_copied_to_the_best_slot_a_short_one_is_not_worth_it() -> None:
    assert placed({7: LONG}, [*LONG, 1, 2], {0: [5]}) == Placement(1, 7, len(LONG))
    assert placed({7: [1, 2, 3]}, [1, 2, 3, 4], {0: [5]}) == Placement(1, 1, 0)
    assert placed({1: [1, 2, 3]}, [1, 2, 3, 4], {0: [5]}) == Placement(1, 1, 3)


def test_a_running_sequence_shares_its_prefix() -> None:
    assert placed({}, [*LONG, 1, 2], {0: [*LONG, 7, 8]}) == Placement(1, 0, len(LONG))


def test_of_equal_prefixes_a_free_slot_gives_it_in_place() -> None:
    assert placed({1: LONG}, [*LONG, 1], {0: [*LONG, 2]}) == Placement(1, 1, len(LONG))


@given(st.data())
def test_slots_are_never_lost_nor_given_twice(data: st.DataObject) -> None:
    slots, busy = Slots(4), dict[int, list[int]]()
    for _ in range(30):
        assert slots.free == 4 - len(busy)
        if slots.free and data.draw(st.booleans()):
            tokens = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=40))
            slot, donor, shared = slots.place(tokens, busy)
            assert slot not in busy and 0 <= shared < len(tokens)
            assert donor == slot or shared >= SHARED_TOKENS_MIN
            busy[slot] = tokens
        elif busy:
            slot = data.draw(st.sampled_from(sorted(busy)))
            slots.give_back(slot, busy.pop(slot))


def test_freeing_twice_is_our_bug() -> None:
    slots = Slots(1)
    with pytest.raises(AssertionError):
        slots.give_back(0, [])
