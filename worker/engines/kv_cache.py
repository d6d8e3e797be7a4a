"""The KV cache: keys and values of every position of every slot, so that no position is ever computed twice.

One array of float32 holds it all, slot by slot, so that the attention of neighbouring slots reads it in place. Memory
is committed by the operating system as positions are written for the first time.
"""

from __future__ import annotations

import mmap
from math import prod

import numpy as np

from worker.engines.linear import Floats, Ids

# Scores are computed for so many positions at a time: products with longer key matrices fall off a cliff in OpenBLAS.
PAGE_TOKENS = 64


class KvCache:
    """Room for `slots` sequences of `context` tokens, in `layers` layers of `heads` key and value heads."""

    def __init__(self, layers: int, slots: int, heads: int, context: int, head_dim: int) -> None:
        self._heads = heads
        # A page more than needed, or the same position of all slots would fall into the same sets of CPU caches.
        self._tokens = -(-context // PAGE_TOKENS) * PAGE_TOKENS + PAGE_TOKENS
        # Along the third axis: the heads of keys, then those of values.
        shape = (layers, slots, 2 * heads, self._tokens, head_dim)
        # Not np.zeros, which asks for huge pages: the first token of a slot would commit 2 MiB in every layer.
        self._cache: Floats = np.frombuffer(mmap.mmap(-1, 4 * prod(shape)), np.float32).reshape(shape)
        self._rows: Floats = self._cache.reshape(layers, slots * 2 * heads * self._tokens, head_dim)

    @staticmethod
    def bytes_per_token(layers: int, heads: int, head_dim: int) -> int:
        """Return how many bytes one position takes."""
        return layers * 2 * heads * head_dim * 4

    @property
    def nbytes(self) -> int:
        """Bytes when every position of every slot is in use."""
        return self._cache.nbytes

    def places(self, slots: Ids, positions: Ids) -> Ids:
        """Return where `write` puts what belongs to these positions (rows,): an index per head, (rows, 2 * heads)."""
        heads = 2 * self._heads
        first = slots * (heads * self._tokens) + positions
        return first[:, None] + np.arange(0, heads * self._tokens, self._tokens)

    def write(self, layer: int, places: Ids, keys_values: Floats) -> None:
        """Store keys and values (rows, 2 * heads, head_dim)."""
        self._rows[layer][places] = keys_values

    def keys(self, layer: int, slots: slice, tokens: int) -> Floats:
        """Return the keys of the first `tokens` positions, in place, by pages: (slots, heads, pages, PAGE_TOKENS, dim).

        The last page is whole: what is behind `tokens` is left over from earlier sequences, or zero.
        """
        pages = -(-tokens // PAGE_TOKENS)
        keys = self._cache[layer, slots, : self._heads, : pages * PAGE_TOKENS]
        return keys.reshape(*keys.shape[:2], pages, PAGE_TOKENS, keys.shape[-1])

    def values(self, layer: int, slots: slice, tokens: int) -> Floats:
        """Return the values of the first `tokens` positions, in place: (slots, heads, tokens, dim)."""
        return self._cache[layer, slots, self._heads :, :tokens]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of slot `source` to slot `target`."""
        self._cache[:, target, :, :tokens] = self._cache[:, source, :, :tokens]
