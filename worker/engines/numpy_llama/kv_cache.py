"""The KV cache: keys and values of every position of every slot, so that no position is ever computed twice.

Attention of neighbouring slots reads it in place. Memory is committed by the operating system as positions are written
for the first time.
"""

from __future__ import annotations

import mmap
from math import prod
from typing import NamedTuple

import numpy as np

from worker.engines.numpy_llama.linear import Floats, Ids

PAGE_TOKENS = 64
"""Positions whose keys are stored as one matrix."""


class Places(NamedTuple):
    """Where rows of a batch belong: their slot, their position, and the page and place in it of that position."""

    slots: Ids
    positions: Ids
    pages: Ids
    offsets: Ids

    @classmethod
    def of(cls, slots: Ids, positions: Ids) -> Places:
        """Return the places of these positions (rows,) of slots (rows,)."""
        pages, offsets = np.divmod(positions, PAGE_TOKENS)
        return cls(slots, positions, pages, offsets)


class KvCache:
    """Room for `slots` sequences of `context` tokens, in `layers` layers of `heads` key and value heads.

    Keys are stored in pages of PAGE_TOKENS positions, each as a matrix (dim, positions) that queries multiply as it is.
    """

    def __init__(self, layers: int, slots: int, heads: int, context: int, dim: int) -> None:
        # A page more than needed, or the same position of all slots would fall into the same sets of CPU caches.
        pages = -(-context // PAGE_TOKENS) + 1
        self._keys = _lazy((layers, slots, heads, pages, dim, PAGE_TOKENS))
        self._values = _lazy((layers, slots, heads, pages * PAGE_TOKENS, dim))

    @staticmethod
    def bytes_per_token(layers: int, heads: int, dim: int) -> int:
        """Return the bytes of one position."""
        return layers * 2 * heads * dim * 4

    @property
    def nbytes(self) -> int:
        """Bytes when every position of every slot is in use."""
        return self._keys.nbytes + self._values.nbytes

    def write(self, layer: int, places: Places, keys: Floats, values: Floats) -> None:
        """Store keys and values (rows, heads, dim)."""
        self._keys[layer][places.slots, :, places.pages, :, places.offsets] = keys
        self._values[layer][places.slots, :, places.positions] = values

    def keys(self, layer: int, slots: slice, tokens: int) -> Floats:
        """Return the keys of the first `tokens` positions, in place: (slots, heads, pages, dim, PAGE_TOKENS).

        The last page is whole: positions behind `tokens` are left over from earlier sequences, or zero.
        """
        return self._keys[layer, slots, :, : -(-tokens // PAGE_TOKENS)]

    def values(self, layer: int, slots: slice, tokens: int) -> Floats:
        """Return the values of the first `tokens` positions, in place: (slots, heads, tokens, dim)."""
        return self._values[layer, slots, :, :tokens]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of slot `source` to slot `target`, and the rest of the last page."""
        pages = -(-tokens // PAGE_TOKENS)
        self._keys[:, target, :, :pages] = self._keys[:, source, :, :pages]
        self._values[:, target, :, :tokens] = self._values[:, source, :, :tokens]

    def clear(self, slot: int, tokens: int) -> None:
        """Make the first `tokens` positions of a slot zero, and the rest of the last page."""
        self._keys[:, slot, :, : -(-tokens // PAGE_TOKENS)] = 0
        self._values[:, slot, :, :tokens] = 0


def _lazy(shape: tuple[int, ...]) -> Floats:
    """Return zeros that occupy memory only once they are written, in pages of the system's ordinary size.

    numpy.zeros asks for huge pages, and then the first token of a slot would occupy 2 MiB in every layer.
    """
    return np.frombuffer(mmap.mmap(-1, 4 * prod(shape)), np.float32).reshape(shape)
