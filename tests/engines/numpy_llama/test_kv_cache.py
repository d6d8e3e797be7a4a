"""The KV cache: what is written is read, slots are apart, and memory is taken only for what is written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.numpy_llama.kv_cache import PAGE_TOKENS, KvCache, Places

LAYERS, SLOTS, HEADS, CONTEXT, DIM = 2, 3, 2, 200, 8


def contents(cache: KvCache, layer: int, slot: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of one slot, each (heads, tokens, dim)."""
    keys = cache.keys(layer, slice(slot, slot + 1), tokens)[0].swapaxes(2, 3).reshape(HEADS, -1, DIM)[:, :tokens]
    return keys, cache.values(layer, slice(slot, slot + 1), tokens)[0]


def fill(cache: KvCache, layer: int, slots: list[int], positions: list[int], rng: np.random.Generator) -> np.ndarray:
    """Write random keys and values; return them, (2, rows, heads, dim)."""
    written = rng.standard_normal((2, len(slots), HEADS, DIM), np.float32)
    cache.write(layer, Places.of(np.array(slots), np.array(positions)), written[0], written[1])
    return written


@given(
    st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, CONTEXT - 1)), min_size=1, max_size=40, unique=True)
)
def test_what_is_written_is_read_and_nothing_else_changes(rows: list[tuple[int, int]]) -> None:
    cache = KvCache(LAYERS, SLOTS, HEADS, CONTEXT, DIM)
    expected = np.zeros((LAYERS, 2, SLOTS, HEADS, CONTEXT, DIM), np.float32)
    slots, positions = [slot for slot, _ in rows], [position for _, position in rows]
    for layer in range(LAYERS):
        written = fill(cache, layer, slots, positions, np.random.default_rng(layer))
        expected[layer][:, slots, :, positions] = written.swapaxes(0, 1)
        for slot in range(SLOTS):
            keys, values = contents(cache, layer, slot, CONTEXT)
            np.testing.assert_array_equal(keys, expected[layer, 0, slot])
            np.testing.assert_array_equal(values, expected[layer, 1, slot])


@pytest.mark.parametrize("tokens", [1, PAGE_TOKENS, CONTEXT])
def test_a_slot_that_is_cleared_holds_zeros_and_the_others_what_they_held(tokens: int) -> None:
    cache = KvCache(LAYERS, SLOTS, HEADS, CONTEXT, DIM)
    before = []
    for layer in range(LAYERS):
        for slot in range(SLOTS):
            fill(cache, layer, [slot] * tokens, list(range(tokens)), np.random.default_rng(slot))
        before.append([[part.copy() for part in contents(cache, layer, slot, CONTEXT)] for slot in range(SLOTS)])
    cache.clear(1, tokens)
    for layer in range(LAYERS):
        assert not any(part.any() for part in contents(cache, layer, 1, CONTEXT))
        for slot in (0, 2):
            np.testing.assert_array_equal(contents(cache, layer, slot, CONTEXT), before[layer][slot])


@pytest.mark.parametrize("tokens", [1, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1, CONTEXT])
def test_a_copy_has_the_first_tokens(tokens: int) -> None:
    cache = KvCache(LAYERS, SLOTS, HEADS, CONTEXT, DIM)
    rng = np.random.default_rng(0)
    for layer in range(LAYERS):
        for slot in range(SLOTS):
            fill(cache, layer, [slot] * CONTEXT, list(range(CONTEXT)), rng)
    untouched = [contents(cache, layer, 2, CONTEXT)[0].copy() for layer in range(LAYERS)]
    cache.copy(0, 1, tokens)
    for layer in range(LAYERS):
        for ours, theirs in zip(contents(cache, layer, 1, tokens), contents(cache, layer, 0, tokens), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(contents(cache, layer, 2, CONTEXT)[0], untouched[layer])
        assert not np.array_equal(*[contents(cache, layer, slot, CONTEXT)[0] for slot in (0, 1)]) or tokens == CONTEXT


def test_attention_reads_in_place() -> None:
    cache = KvCache(LAYERS, SLOTS, HEADS, CONTEXT, DIM)
    for view in (cache.keys(0, slice(0, 2), 100), cache.values(1, slice(0, 2), 100)):
        assert not view.flags.owndata
        assert view.strides[-1] == 4
    assert cache.keys(0, slice(0, 2), 100).shape == (2, HEADS, 2, DIM, PAGE_TOKENS)
    assert cache.values(0, slice(1, 3), 100).shape == (2, HEADS, 100, DIM)


def test_bytes_are_what_is_said() -> None:
    cache = KvCache(LAYERS, SLOTS, HEADS, PAGE_TOKENS * 3, DIM)
    assert KvCache.bytes_per_token(LAYERS, HEADS, DIM) == LAYERS * 2 * HEADS * DIM * 4
    # One page of each slot is never used.
    assert cache.nbytes == SLOTS * PAGE_TOKENS * 4 * KvCache.bytes_per_token(LAYERS, HEADS, DIM)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_taken_only_for_what_is_written() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    cache = KvCache(layers=4, slots=64, heads=2, context=2048, dim=64)
    slots = np.arange(64)
    row = np.ones((64, 2, 64), np.float32)
    for layer in range(4):
        cache.write(layer, Places.of(slots, np.zeros(64, np.intp)), row, row)
    assert cache.nbytes > 500 << 20
    # Keys take a page of 16 KiB per slot, head and layer, values one of 4 KiB.
    assert resident() - before < 32 << 20
