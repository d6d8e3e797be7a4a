"""Shares of the engine: under full load, tokens are served in proportion to weights."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.engine import Clock, CountingEngine, prepared_work
from worker.engines.base import Delta
from worker.scheduler.fairness import DECODE_WEIGHT, PREFILL_WEIGHT
from worker.scheduler.loop import Loop
from worker.scheduler.works import Schedule, Started

PROMPT_MAX, TOKENS_MAX = 8, 12


def served(weights: dict[str, float], slots: int, steps: int, sizes: list[tuple[int, int]]) -> Counter[str]:
    """Return what each account was served, in the scheduler's measure, while each always has works waiting.

    `sizes` are the prompts and budgets of all works in turn.
    """
    loop = Loop(CountingEngine(slots=slots), Schedule(prefill_tokens_per_step=64), Clock())
    owners: dict[str, str] = {}
    served: Counter[str] = Counter()
    here: Counter[str] = Counter()
    shapes = itertools.cycle(sizes)
    for _ in range(steps):
        for account, weight in weights.items():
            while here[account] < 2 * slots:
                prompt, budget = next(shapes)
                work = prepared_work(f"w{len(owners)}", account, prompt=prompt, max_tokens=budget)
                loop.submit(msgspec.structs.replace(work, weight=weight))
                owners[work.prepared.lease] = account
                here[account] += 1
        batch = loop.step()
        assert batch is not None
        for event in batch.events:
            if isinstance(event, Started):
                served[owners[event.lease]] += PREFILL_WEIGHT * event.prompt_tokens
            elif isinstance(event, Delta):
                served[owners[event.lease]] += DECODE_WEIGHT * len(event.ids)
                here[owners[event.lease]] -= event.finish is not None
    return served


def test_three_shares_are_three_times_one() -> None:
    total = served({"one": 1.0, "three": 3.0}, slots=4, steps=2000, sizes=[(4, 10)])
    assert 2.95 < total["three"] / total["one"] < 3.05


def test_equal_weights_are_equal_whatever_they_are() -> None:
    total = served({"a": 7.5, "b": 7.5}, slots=2, steps=1000, sizes=[(4, 10)])
    assert 0.98 < total["a"] / total["b"] < 1.02


@settings(max_examples=25)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=3),
    slots=st.integers(1, 4),
    sizes=st.lists(st.tuples(st.integers(1, PROMPT_MAX), st.integers(1, TOKENS_MAX)), min_size=1, max_size=7),
)
def test_nobody_is_ever_behind_its_share_by_more_than_what_runs(
    weights: list[float], slots: int, sizes: list[tuple[int, int]]
) -> None:
    """The bound of the paper: the difference does not grow with time, so the ratio goes to that of the weights."""
    named = {f"p{number}": weight for number, weight in enumerate(weights)}
    slack = 2 * slots * (PREFILL_WEIGHT * PROMPT_MAX + DECODE_WEIGHT * TOKENS_MAX) / min(weights)
    for steps in (100, 500):
        total = served(named, slots, steps, sizes)
        shares = [total[name] / weight for name, weight in named.items()]
        assert max(shares) - min(shares) <= slack, total
