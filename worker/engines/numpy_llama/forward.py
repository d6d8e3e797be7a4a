"""The forward pass of a Llama: one batch of tokens, of many sequences, through all layers.

A batch mixes two kinds of rows: single tokens, the next of a sequence in decode, and chunks of a prompt in prefill. All
rows share the matrix products, which makes batching worthwhile. Attention is different for each row; single tokens in
neighbouring slots are computed together, on the cache in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.engines.numpy_llama.kv_cache import PAGE_TOKENS, KvCache, Places
from worker.engines.numpy_llama.linear import Floats, Ids, multiply
from worker.engines.numpy_llama.weights import LlamaWeights

GROUP_TOKENS = 400
"""The cost of computing one more group of slots apart, in positions of cache that could be read meanwhile."""

QUERIES_MAX = 64
"""Queries of a prompt that are computed together: their scores need 4 * heads * QUERIES_MAX * tokens bytes."""


class Chunk(NamedTuple):
    """Tokens to compute for one sequence: `ids`, the first of which stands at `position` in `slot`."""

    slot: int
    position: int
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class SlotGroup:
    """Rows that are the only ones of their slots. `slots` is the range they lie in, `tokens` the longest's length.

    `places` are the rows' places in that range, None if they fill it. `mask` (slots, 1, 1, n) is added to the last n
    scores, None if all are equally long.
    """

    rows: slice
    slots: slice
    tokens: int
    places: Ids | None
    mask: Floats | None


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one prompt: `slot` holds the positions before `stop`, the last of which are these rows."""

    rows: slice
    slot: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of one pass: the token and the place of each, and how their attention is computed.

    `ends` are the rows of the last token of each chunk, in the order in which the chunks were given.
    """

    ids: Ids
    places: Places
    ends: Ids
    groups: list[SlotGroup]
    spans: list[Span]


class Forward:
    """Computes batches with one model and one cache."""

    def __init__(self, weights: LlamaWeights, cache: KvCache, context: int) -> None:
        self._weights = weights
        self._cache = cache
        shape = weights.shape
        angles = np.outer(np.arange(context), weights.frequencies)
        # A pair of neighbours is one complex number, and RoPE a multiplication by one of length 1.
        self._turns: NDArray[np.complex64] = np.exp(1j * angles).astype(np.complex64)
        self._group = shape.heads // shape.kv_heads
        causal = np.triu(np.full((QUERIES_MAX, QUERIES_MAX), -np.inf, np.float32), 1)
        self._causal: Floats = np.repeat(causal, self._group, axis=0)

    def __call__(self, chunks: Sequence[Chunk]) -> Floats:
        """Compute all chunks, write their keys and values, and return the hidden state after the last token of each.

        (chunks, hidden), in their order. There is at least one chunk, and no slot has two.
        """
        rows = _lay_out(chunks)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            hidden = self._layers(rows)
        return hidden[rows.ends]

    def logits(self, hidden: Floats) -> Floats:
        """Return the logits (rows, vocab) after hidden states (rows, hidden)."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return self._weights.head(_normed(hidden, self._weights.shape.norm_eps) * self._weights.norm)

    def _layers(self, rows: Rows) -> Floats:
        shape, cache = self._weights.shape, self._cache
        count, eps = len(rows.ids), shape.norm_eps
        turns = self._turns[rows.places.positions][:, None]
        hidden = self._weights.embedding.output_rows(rows.ids)
        mixed = np.empty((count, shape.queries), np.float32)
        for number, layer in enumerate(self._weights.layers):
            qkv = layer.qkv(_normed(hidden, eps)).reshape(count, -1, shape.head_dim)
            turned = qkv[:, : shape.heads + shape.kv_heads].view(np.complex64)
            turned *= turns
            cache.write(number, rows.places, qkv[:, shape.heads : -shape.kv_heads], qkv[:, -shape.kv_heads :])
            queries = qkv[:, : shape.heads].reshape(count, shape.kv_heads, self._group, shape.head_dim)
            for group in rows.groups:
                self._attend_group(number, group, queries, mixed)
            for span in rows.spans:
                self._attend_span(number, span, queries, mixed)
            hidden += layer.output(mixed)
            gate_up = layer.gate_up(_normed(hidden, eps))
            hidden += layer.down(_gated(gate_up[:, : shape.ffn], gate_up[:, shape.ffn :]))
        return hidden

    def _attend_group(self, layer: int, group: SlotGroup, queries: Floats, mixed: Floats) -> None:
        """Attention of single rows: each sees all of its slot's positions."""
        mine = queries[group.rows]
        if group.places is not None:
            spread = np.zeros((group.slots.stop - group.slots.start, *mine.shape[1:]), np.float32)
            spread[group.places] = mine
            mine = spread
        found = self._attend(layer, group.slots, group.tokens, mine, group.mask).reshape(len(mine), -1)
        mixed[group.rows] = found if group.places is None else found[group.places]

    def _attend_span(self, layer: int, span: Span, queries: Floats, mixed: Floats) -> None:
        """Causal attention of a chunk of a prompt, `QUERIES_MAX` rows at a time."""
        slot = slice(span.slot, span.slot + 1)
        for start in range(span.rows.start, span.rows.stop, QUERIES_MAX):
            rows = slice(start, min(start + QUERIES_MAX, span.rows.stop))
            count = rows.stop - rows.start
            tokens = span.stop - (span.rows.stop - rows.stop)
            # For each key head, all rows of all query heads that share it.
            mine = queries[rows].swapaxes(0, 1)
            heads, _, group, dim = mine.shape
            mask = self._causal[: count * group, :count]
            found = self._attend(layer, slot, tokens, mine.reshape(1, heads, count * group, dim), mask)
            mixed[rows] = found.reshape(heads, count, group * dim).swapaxes(0, 1).reshape(count, -1)

    def _attend(self, layer: int, slots: slice, tokens: int, queries: Floats, mask: Floats | None) -> Floats:
        """Attention of queries (slots, heads, rows, dim) to the first `tokens` positions of their slots.

        `mask` is added to the last scores. Returns the same shape. Products and sums go by pages, so that a row's
        result does not depend on how long others in its group are.
        """
        keys = self._cache.keys(layer, slots, tokens)
        scores = np.empty((*queries.shape[:3], keys.shape[2], PAGE_TOKENS), np.float32)
        multiply(queries[:, :, None], keys, scores.swapaxes(2, 3))
        flat = scores.reshape(*queries.shape[:3], -1)
        seen = flat[..., :tokens]
        if mask is not None:
            seen[..., tokens - mask.shape[-1] :] += mask
        seen -= seen.max(axis=-1, keepdims=True)
        np.exp(seen, out=seen)
        flat[..., tokens:] = 0
        found = np.empty(queries.shape, np.float32)
        multiply(seen, self._cache.values(layer, slots, tokens), found)
        found /= scores.sum(axis=-2).sum(axis=-1, keepdims=True)
        return found


def _lay_out(chunks: Sequence[Chunk]) -> Rows:
    """Lay out the rows: single tokens first, by slot, then prompts."""
    keys = [(len(chunk.ids) > 1, chunk.slot) for chunk in chunks]
    order = sorted(range(len(chunks)), key=keys.__getitem__)
    laid = [(chunks[i], chunks[i].position + len(chunks[i].ids)) for i in order]
    singles = [(chunk.slot, stop) for chunk, stop in laid if len(chunk.ids) == 1]
    row_stops = list(accumulate(len(chunk.ids) for chunk, _ in laid))
    ends = np.empty(len(chunks), np.intp)
    ends[order] = row_stops
    ends -= 1
    return Rows(
        ids=np.array([token for chunk, _ in laid for token in chunk.ids]),
        places=Places.of(
            slots=np.array([chunk.slot for chunk, _ in laid for _ in chunk.ids]),
            positions=np.array([position for chunk, stop in laid for position in range(chunk.position, stop)]),
        ),
        ends=ends,
        groups=plan_groups([slot for slot, _ in singles], [length for _, length in singles]),
        spans=[
            Span(slice(row_stop - len(chunk.ids), row_stop), chunk.slot, stop)
            for (chunk, stop), row_stop in zip(laid, row_stops, strict=True)
            if len(chunk.ids) > 1
        ],
    )


def plan_groups(slots: Sequence[int], lengths: Sequence[int]) -> list[SlotGroup]:
    """Cut rows, sorted by slot, into groups of neighbouring slots that are worth computing together.

    Together means: as long as the longest, gaps included. Apart means the price of one more group.
    """
    if not slots:
        return []
    waste = (slots[-1] - slots[0] + 1) * max(lengths) - sum(lengths)
    if waste <= GROUP_TOKENS:
        return [_group(slots, lengths, slice(0, len(slots)))]
    groups: list[SlotGroup] = []
    start, longest = 0, 0
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        together = (slot - slots[start] + 1) * max(longest, length)
        apart = (slots[row - 1] - slots[start] + 1) * longest + GROUP_TOKENS + length
        if row > start and together > apart:
            groups.append(_group(slots, lengths, slice(start, row)))
            start, longest = row, 0
        longest = max(longest, length)
    return [*groups, _group(slots, lengths, slice(start, len(slots)))]


def _group(slots: Sequence[int], lengths: Sequence[int], rows: slice) -> SlotGroup:
    first, count = slots[rows.start], slots[rows.stop - 1] - slots[rows.start] + 1
    longest, shortest = max(lengths[rows]), min(lengths[rows])
    places = np.array(slots[rows]) - first if count > rows.stop - rows.start else None
    mask = None
    if shortest < longest:
        # Slots in a gap see everything: their results are thrown away.
        limits = np.full(count, longest)
        limits[np.array(slots[rows]) - first] = lengths[rows]
        hidden = np.arange(shortest, longest) >= limits[:, None]
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))[:, None, None]
    return SlotGroup(rows, slice(first, first + count), longest, places, mask)


def _normed(hidden: Floats, eps: float) -> Floats:
    """Each row divided by its root mean square; the weights of the norm are in the matrix that comes next."""
    scale = np.vecdot(hidden, hidden)
    scale *= np.float32(1 / hidden.shape[1])
    scale += np.float32(eps)
    np.sqrt(scale, out=scale)
    normed: Floats = hidden / scale[:, None]
    return normed


def _gated(gate: Floats, up: Floats) -> Floats:
    """SwiGLU: gate * sigmoid(gate) * up."""
    result = np.exp(-gate)
    result += 1
    np.divide(gate, result, out=result)
    result *= up
    return result
