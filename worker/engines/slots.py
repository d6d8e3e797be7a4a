"""Slots of a KV cache: which are free, what they still hold, and which is best for a new sequence. Pure decisions.

A slot keeps its keys and values after its sequence left, until the next one gets it: a prompt that begins like an
earlier one, or like one that is running, need not be computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from worker.engines.base import Capacity

SHARED_TOKENS_MIN = 16
"""A shorter prefix is not worth a copy from another slot."""


class Placement(NamedTuple):
    """Put a sequence into `slot`; its first `shared` tokens are in slot `donor` (which may be the same)."""

    slot: int
    donor: int
    shared: int


class Slots:
    """Keeps account of the free slots. The engine itself moves and drops keys and values."""

    def __init__(self, slots: int) -> None:
        self._total = slots
        self._held: dict[int, list[int]] = {slot: [] for slot in range(slots)}  # longest free first

    @property
    def free(self) -> int:
        """The number of free slots."""
        return len(self._held)

    def capacity(self, context_tokens: int) -> Capacity:
        """Return the room that is free now, where each slot has the cache of a whole context."""
        free, total = self.free, self._total
        return Capacity(free, total, free * context_tokens, total * context_tokens, context_tokens)

    def place(self, tokens: list[int], busy: Mapping[int, list[int]]) -> Placement:
        """Choose a free slot for a sequence of `tokens`, and the slot that shares the longest prefix with it.

        `busy` are the other slots and the tokens that each holds. At most all tokens but one are shared, because the
        logits of the last are needed. With nothing busy, a slot with a shared prefix is used as it is, or the one that
        was free for longest; else the one that leaves the fewest gaps: engines compute neighbours together.
        """
        donor, shared = self._donor(tokens[:-1], busy)
        if not busy:
            slot = donor if shared else next(iter(self._held))
        else:
            slot = min(self._held, key=lambda free: (min(abs(free - other) for other in busy), free))
        if shared < SHARED_TOKENS_MIN and donor != slot:
            shared = 0
        del self._held[slot]
        return Placement(slot, donor if shared else slot, shared)

    def give_back(self, slot: int, tokens: list[int]) -> None:
        """Free a slot that holds `tokens`."""
        assert slot not in self._held, "freed twice"
        self._held[slot] = tokens

    def _donor(self, tokens: list[int], busy: Mapping[int, list[int]]) -> tuple[int, int]:
        """Return the slot that shares the longest prefix, and its length; of equal ones a free one."""
        shared = {slot: common_prefix(tokens, held) for slot, held in [*self._held.items(), *busy.items()]}
        donor = max(shared, key=shared.__getitem__)
        return donor, shared[donor]


def common_prefix(tokens: list[int], held: list[int]) -> int:
    """Return how many tokens two lists share at the beginning; bisected, because slices compare fast."""
    low, high = 0, min(len(tokens), len(held))
    while low < high:
        middle = (low + high + 1) // 2
        if tokens[low:middle] == held[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
