"""Long outputs in slices: more sequences than the cache could hold whole, each paused now and then, and all finish."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.engine import Clock, CountingEngine, prepared_work
from worker.engines.base import Delta, Paused
from worker.scheduler.loop import Loop
from worker.scheduler.works import Placed, Schedule, Started, Work, WorkEvent

BLOCK = 8


def run(
    works: list[Work], slice_tokens: int, kv_blocks: int, slots: int = 8, steps_max: int = 20_000
) -> list[WorkEvent]:
    """Serve these works to the end, each step a millisecond; return all their events."""
    clock = Clock()

    def pass_time(_tokens: int) -> None:
        clock.now_s += 0.001

    engine = CountingEngine(slots, kv_blocks, BLOCK, on_step=pass_time, slice_tokens=slice_tokens)
    loop = Loop(engine, Schedule(prefill_tokens_per_step=16, queue_news_ms=0), clock)
    for work in works:
        loop.submit(work)
    events: list[WorkEvent] = []
    for _ in range(steps_max):
        batch = loop.step()
        if batch is None:
            assert not engine.sequences and not engine.paused
            return events
        events += batch.events
    raise AssertionError("works that never end")


def outputs(events: list[WorkEvent]) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, Delta):
            ids.setdefault(event.lease, []).extend(event.ids)
    return ids


def pauses(events: list[WorkEvent]) -> Counter[str]:
    return Counter(event.lease for event in events if isinstance(event, Paused))


def test_two_long_works_take_turns_in_a_cache_for_one() -> None:
    works = [prepared_work(name, prompt=8, max_tokens=72) for name in "ab"]
    events = run(works, slice_tokens=16, kv_blocks=10)
    assert outputs(events) == {"a": list(range(72)), "b": list(range(72))}
    assert 1 <= sum(pauses(events).values()) <= 2 * 72 // 16


def test_no_room_is_held_for_tokens_that_may_never_come() -> None:
    """Eight works that could grow to the whole cache run at once, and none is ever paused: they end early enough."""
    works = [prepared_work(str(number), prompt=4, max_tokens=9) for number in range(8)]
    asked = [prepared_work(str(number), prompt=4, max_tokens=76) for number in range(8)]
    events = run(works, slice_tokens=4, kv_blocks=16)
    assert not pauses(events)
    first = [event.lease for event in run(asked, slice_tokens=0, kv_blocks=16)[:2] if isinstance(event, Started)]
    sliced = [event.lease for event in run(asked, slice_tokens=4, kv_blocks=16)[:9] if isinstance(event, Started)]
    assert len(first) == 1 and len(sliced) > 2


def test_a_paused_work_is_first_in_its_lane_again_and_gets_its_position() -> None:
    works = [prepared_work(name, prompt=8, max_tokens=40) for name in "abc"]
    events = run(works, slice_tokens=8, kv_blocks=6)
    paused = next(event for event in events if isinstance(event, Paused))
    after = events[events.index(paused) + 1 :]
    place = next(event for event in after if isinstance(event, Placed))
    assert (place.lease, place.position) == (paused.lease, 1)
    assert next(event.lease for event in after if isinstance(event, Started)) == paused.lease


def test_the_short_are_not_starved_by_the_long() -> None:
    long = [prepared_work(f"long {number}", "greedy", prompt=8, max_tokens=150) for number in range(4)]
    events = run([*long, prepared_work("short", "modest", prompt=8, max_tokens=8)], slice_tokens=8, kv_blocks=20)
    ends = [event.lease for event in events if isinstance(event, Delta) and event.finish]
    assert ends[0] == "short" and len(ends) == 5


WORK = st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 40), st.integers(1, 56), st.integers(0, 20))


@settings(max_examples=200)
@given(
    asked=st.lists(WORK, min_size=1, max_size=10),
    slice_tokens=st.integers(1, 30),
    kv_blocks=st.integers(12, 20),
    slots=st.integers(1, 6),
)
def test_whatever_is_asked_everything_ends_as_without_slices(
    asked: list[tuple[str, int, int, int, int]], slice_tokens: int, kv_blocks: int, slots: int
) -> None:
    works = [
        prepared_work(str(number), account, priority, prompt, budget, generated=range(min(generated, budget - 1)))
        for number, (account, priority, prompt, budget, generated) in enumerate(asked)
    ]
    sliced, whole = (run(works, size, kv_blocks, slots) for size in (slice_tokens, 0))
    assert outputs(sliced) == outputs(whole)
    assert not pauses(whole)
    for number, (_, _, _, budget, _) in enumerate(asked):
        # Between two pauses a work produces a slice at least: nothing goes in circles.
        assert pauses(sliced)[str(number)] <= budget // slice_tokens
