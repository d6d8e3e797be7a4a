"""Choosing the next token: one row of logits per sequence, all rows of a step at once.

The order is that of Hugging Face transformers: logit bias, penalties, temperature, then top_k, top_p and min_p. Every
filter keeps the tokens whose weight reaches a threshold, so tokens of equal weight stay or go together.
The draw is the inverse of the cumulative distribution at one number, which is a function of seed and position alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from worker.requests import Sampling

Logits = NDArray[np.float32]

REPETITION_PENALTY_MIN = 0.01
"""Smaller penalties, which would divide by zero, count as this one."""

BLOCK = 64
"""Tokens whose weights are summed together when a token is drawn."""

PLACE_BITS = 20
"""Lower bits of a float that are ignored when weights are sorted into places, see `_reaching`."""

FIRST_PLACE = int(np.float32(1.0).view(np.uint32)) >> PLACE_BITS
_TINY = float(np.finfo(np.float32).tiny)
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(seed: int, position: int, draw: int = 0) -> int:
    """Return 64 random bits, a pure function of its arguments.

    SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), keyed in two rounds so
    that neighbouring seeds have unrelated streams. `draw` distinguishes several numbers at one position.
    """
    return _finalize(_finalize((seed + _GOLDEN) & _MASK) + (2 * position + draw + 1) * _GOLDEN)


def uniform(seed: int, position: int, draw: int = 0) -> float:
    """Return a number in [0, 1) with 53 random bits, a pure function of its arguments."""
    return (mix(seed, position, draw) >> 11) * 2.0**-53


def choose(logits: Logits, settings: Sequence[Sampling], uniforms: Sequence[float]) -> NDArray[np.intp]:
    """Return the next token of each row of `logits` (rows, vocab): the likeliest at temperature 0, else drawn.

    `settings` and `uniforms` (numbers in [0, 1), used by rows that draw) are parallel to the rows. Bias and penalties
    are not applied here, see `Shaping`. Rows without a finite maximum get an arbitrary token.
    """
    picks: NDArray[np.intp] = logits.argmax(axis=1)
    rows = [row for row, sampling in enumerate(settings) if sampling.temperature > 0.0]
    if rows:
        weights = filtered(logits[rows], [settings[row] for row in rows])
        picks[rows] = _draw(weights, np.array([uniforms[row] for row in rows]))
    return picks


def filtered(logits: Logits, settings: Sequence[Sampling]) -> NDArray[np.float32]:
    """Return the weights (rows, vocab) that are left after temperature, top_k, top_p and min_p.

    A row's largest weight is 1; weights are proportional to probabilities. Every temperature must be above 0.
    """
    temperature = np.array([max(sampling.temperature, _TINY) for sampling in settings], np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weights: NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
        weights /= temperature[:, None]
        np.exp(weights, out=weights)
    threshold = np.array([sampling.min_p for sampling in settings], np.float32)
    vocab = logits.shape[1]
    for row, sampling in enumerate(settings):
        if 0 < sampling.top_k < vocab or sampling.top_p < 1.0:
            threshold[row] = max(threshold[row], _threshold(weights[row], sampling))
    if threshold.any():
        np.putmask(weights, weights < np.minimum(threshold, 1.0)[:, None], 0.0)
    return weights


def _threshold(weights: NDArray[np.float32], sampling: Sampling) -> float:
    """Return the smallest weight of a row (vocab,) that top_k, then top_p keep: top_p counts the mass that is left."""
    least, left = 0.0, weights
    if 0 < sampling.top_k < len(weights):
        least = _reaching(weights, None, sampling.top_k)
        above = weights[weights > least]
        # Among equal weights, only top_k tokens in all count for the mass.
        left = np.append(above, np.full(sampling.top_k - len(above), least, np.float32))
    if sampling.top_p < 1.0:
        least = _reaching(left, left, sampling.top_p * float(left.sum(dtype=np.float64)))
    return least


def _reaching(weights: NDArray[np.float32], amounts: NDArray[np.float32] | None, wanted: float) -> float:
    """Return the weight at which the amounts (None: one each), largest weight first, reach `wanted`. O(vocab).

    Positive floats are in the order of their bits: the upper ones give every weight a place, among eight for each power
    of two, and only those at the place where it happens are sorted. Sorting a large vocabulary is ten times slower.
    """
    # Values that are not a number go first.
    places = FIRST_PLACE - np.minimum(weights.view(np.uint32) >> PLACE_BITS, FIRST_PLACE).astype(np.intp)
    sums = np.cumsum(np.bincount(places, amounts))
    place = min(int(np.searchsorted(sums, wanted)), len(sums) - 1)
    before = sums[place - 1] if place else 0.0
    inside = np.sort(weights[places == place])[::-1]
    reached = before + (np.arange(1, len(inside) + 1) if amounts is None else inside.cumsum(dtype=np.float64))
    return float(inside[min(int(np.searchsorted(reached, wanted)), len(inside) - 1)])


def _draw(weights: NDArray[np.float32], uniforms: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the first token of each row at which the cumulated weight passes that share of the total.

    First the block of the vocabulary is found, then the token in it: cumulating the whole row is five times slower.
    """
    vocab = weights.shape[1]
    mass = np.add.reduceat(weights, np.arange(0, vocab, BLOCK), axis=1, dtype=np.float64).cumsum(axis=1)
    block = _passed(mass, uniforms * mass[:, -1])
    rows = np.arange(len(weights))
    before = np.where(block > 0, mass[rows, block - 1], 0.0)
    tokens = block[:, None] * BLOCK + np.arange(BLOCK)
    inside = np.where(tokens < vocab, weights[rows[:, None], np.minimum(tokens, vocab - 1)], 0.0)
    picks: NDArray[np.intp] = block * BLOCK + _passed(inside.cumsum(axis=1), uniforms * mass[:, -1] - before)
    return picks


def _passed(mass: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the first column of each row of running sums whose sum is above the target: so it added something.

    Rounding must not lift a target to the total, which nothing passes.
    """
    below = np.nextafter(mass[:, -1], 0.0)
    columns: NDArray[np.intp] = (mass <= np.minimum(target, below)[:, None]).sum(axis=1)
    return columns


def biases(sampling: Sampling, banned: Iterable[int] = ()) -> dict[int, float]:
    """Return the bias of each biased token; `banned` tokens can never be chosen."""
    return {**sampling.logit_bias, **dict.fromkeys(banned, -np.inf)}


class Shaping:
    """The changes to one sequence's logits: bias, and penalties that count its tokens.

    The repetition penalty divides positive logits and multiplies negative ones (Keskar et al. 2019, CTRL), for tokens
    of prompt and output; presence and frequency penalties are subtracted for tokens of the output, once and per
    occurrence (OpenAI's definition).
    """

    def __init__(
        self, sampling: Sampling, bias: dict[int, float], vocab: int, prompt: Iterable[int], output: Iterable[int]
    ) -> None:
        self._bias_ids = np.fromiter(bias.keys(), np.intp, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._repetition = np.float32(max(sampling.repetition_penalty, REPETITION_PENALTY_MIN))
        self._presence = np.float32(sampling.presence_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._seen = np.zeros(vocab, np.bool_)
        self._counts = np.zeros(vocab, np.float32)
        self._seen[list(prompt)] = True
        for token in output:
            self.observe(token)

    @staticmethod
    def wanted(sampling: Sampling, bias: dict[int, float]) -> bool:
        """Return whether these settings change logits at all."""
        penalties = (sampling.repetition_penalty - 1.0, sampling.presence_penalty, sampling.frequency_penalty)
        return bool(bias) or any(penalties)

    def observe(self, token: int) -> None:
        """Count a token of the output."""
        self._seen[token] = True
        self._counts[token] += 1.0

    def apply(self, row: Logits) -> None:
        """Change one row of logits (vocab,) in place."""
        row[self._bias_ids] += self._bias
        if self._repetition != 1.0:
            ids = np.flatnonzero(self._seen)
            values = row[ids]
            row[ids] = np.where(values > 0.0, values / self._repetition, values * self._repetition)
        if self._presence or self._frequency:
            ids = np.flatnonzero(self._counts)
            row[ids] -= self._presence + self._frequency * self._counts[ids]


def log_softmax(logits: Logits) -> NDArray[np.float32]:
    """Return natural-log probabilities (rows, vocab) of the model's own distribution."""
    with np.errstate(under="ignore", invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        norm = np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
    result: NDArray[np.float32] = shifted - norm.astype(np.float32)
    return result


def likeliest(logprobs: NDArray[np.float32], count: int) -> list[int]:
    """Return the `count` likeliest tokens of one row (vocab,), likeliest first, equal ones by id."""
    count = min(count, len(logprobs))
    if count == 0:
        return []
    smallest = np.partition(logprobs, -count)[-count]
    ids = np.flatnonzero(logprobs >= smallest)
    ranked = ids[np.argsort(-logprobs[ids], kind="stable")]
    return [int(token) for token in ranked[:count]]


def _finalize(bits: int) -> int:
    """Apply the finalizer of SplitMix64: each bit of the input changes half of the output's."""
    bits &= _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)
