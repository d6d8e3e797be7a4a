"""Sampling: what may be chosen, how often, and that nothing but seed and position decides."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.engines.output.sampling import (
    BLOCK,
    Logits,
    Shaping,
    biases,
    choose,
    filtered,
    likeliest,
    log_softmax,
    mix,
    uniform,
)
from worker.requests import Sampling

VOCAB = 150


@st.composite
def rows(draw: st.DrawFn, count: int | None = None) -> Logits:
    """Rows of logits, some peaked, some with ties and impossible tokens."""
    size = count or draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(scale=draw(st.sampled_from([0.1, 3.0, 30.0])), size=(size, VOCAB)).astype(np.float32)
    if draw(st.booleans()):
        logits = np.round(logits)
    logits[rng.random(logits.shape) < draw(st.sampled_from([0.0, 0.5, 0.99]))] = -np.inf
    logits[np.arange(size), rng.integers(0, VOCAB, size)] = 1.0
    return logits


settings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-300, 0.01, 0.8, 1.0, 2.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 10, VOCAB - 1, VOCAB, 10_000]),
    top_p=st.sampled_from([0.0, 1e-9, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
numbers = st.floats(0.0, 1.0, exclude_max=True)


def softmax(row: Logits, temperature: float = 1.0) -> NDArray[np.float64]:
    scaled = (row.astype(np.float64) - row.max()) / temperature
    weights = np.exp(scaled)
    return np.asarray(weights / weights.sum())


def support(row: Logits, sampling: Sampling) -> set[int]:
    """The definition, token by token: those that temperature, then top_k, top_p and min_p leave, ties included."""
    weights = filtered(row[None], [Sampling(temperature=sampling.temperature)])[0].astype(np.float64)
    ranked = sorted(weights, reverse=True)
    floor = ranked[min(sampling.top_k or VOCAB, VOCAB) - 1]
    if sampling.top_p < 1.0:
        mass = np.cumsum(ranked[: min(sampling.top_k or VOCAB, VOCAB)])
        floor = max(floor, next(w for w, m in zip(ranked, mass, strict=False) if m >= sampling.top_p * mass[-1]))
    floor = max(floor, np.float32(sampling.min_p))
    return {token for token in range(VOCAB) if weights[token] >= floor and weights[token] > 0.0}


@given(rows(), st.data())
def test_only_tokens_that_the_filters_leave_are_chosen(logits: Logits, data: st.DataObject) -> None:
    chosen = [data.draw(settings) for _ in logits]
    picks = choose(logits, chosen, [data.draw(numbers) for _ in logits])
    for row, sampling, pick in zip(logits, chosen, picks, strict=True):
        if sampling.temperature == 0.0:
            assert pick == row.argmax()
        else:
            assert int(pick) in support(row, sampling)


@given(rows(), settings, numbers)
def test_a_row_is_chosen_alike_alone_and_in_a_batch(logits: Logits, sampling: Sampling, number: float) -> None:
    together = choose(logits, [sampling] * len(logits), [number] * len(logits))
    alone = [choose(row[None], [sampling], [number])[0] for row in logits]
    assert together.tolist() == alone


@given(rows(1), st.sampled_from([0.3, 1.0, 1.7]), numbers)
def test_the_draw_inverts_the_cumulative_distribution(logits: Logits, temperature: float, number: float) -> None:
    pick = int(choose(logits, [Sampling(temperature=temperature)], [number])[0])
    mass = np.concatenate([[0.0], np.cumsum(softmax(logits[0], temperature))])
    assert mass[pick] - 1e-5 <= number <= mass[pick + 1] + 1e-5


@given(rows(1), settings)
def test_the_likeliest_token_is_never_filtered_away(logits: Logits, sampling: Sampling) -> None:
    sampling = msgspec.structs.replace(sampling, temperature=sampling.temperature or 1.0)
    weights = filtered(logits, [sampling])[0]
    assert weights[logits[0].argmax()] == 1.0


@given(rows(1), numbers)
def test_neutral_settings_are_the_model_own_distribution(logits: Logits, number: float) -> None:
    weights = filtered(logits, [Sampling()])[0].astype(np.float64)
    np.testing.assert_allclose(weights / weights.sum(), softmax(logits[0]), rtol=1e-4, atol=1e-7)
    wide = Sampling(top_k=10_000, top_p=1.0, min_p=0.0)
    assert choose(logits, [wide], [number]) == choose(logits, [Sampling()], [number])
    assert not Shaping.wanted(Sampling(), biases(Sampling()))


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32)
    draws = 4000
    logits = np.tile(np.log(probabilities), (draws, 1))
    picks = choose(logits, [Sampling()] * draws, [uniform(7, position) for position in range(draws)])
    np.testing.assert_allclose(np.bincount(picks, minlength=5) / draws, probabilities, atol=0.02)


def test_the_largest_number_never_chooses_an_impossible_token() -> None:
    logits = np.full((1, 1000), -np.inf, np.float32)
    logits[0, [3, 70, 500]] = 0.0
    for number, token in ((0.0, 3), (0.4, 70), (1.0 - 2.0**-53, 500)):
        assert choose(logits, [Sampling()], [number])[0] == token


def test_top_p_keeps_no_more_than_reaches_the_mass() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))
    for top_p, count in ((0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 4), (1.0, 4)):
        assert np.count_nonzero(filtered(logits, [Sampling(top_p=top_p)])) == count


@pytest.mark.parametrize("scale", [0.0, 0.01, 5.0])
def test_filters_of_a_large_vocabulary(scale: float) -> None:
    logits = np.random.default_rng(1).normal(scale=scale, size=(3, 20_000)).astype(np.float32)
    nuclei = filtered(logits, [Sampling(top_p=0.9)] * 3)
    first = filtered(logits, [Sampling(top_k=777)] * 3)
    for number, row in enumerate(logits):
        ranked = np.argsort(-row, kind="stable")
        reached = np.searchsorted(softmax(row)[ranked].cumsum(), 0.9)
        assert set(np.flatnonzero(nuclei[number])) == set(np.flatnonzero(row >= row[ranked[reached]]))
        assert set(np.flatnonzero(first[number])) == set(np.flatnonzero(row >= row[ranked[776]]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_without_a_maximum_gets_some_token_and_spoils_no_other(value: float) -> None:
    logits = np.zeros((2, 100), np.float32)
    logits[0], logits[1, 7] = value, 50.0
    sampling = Sampling(top_k=5, top_p=0.9)
    tokens = choose(logits, [sampling] * 2, [0.5] * 2)
    assert 0 <= tokens[0] < 100 and tokens[1] == 7


def test_numbers_on_the_border_of_two_blocks_never_choose_an_impossible_token() -> None:
    """A block's sum and the running sum inside it are rounded differently."""
    logits = np.full((1, 3 * BLOCK), -np.inf, np.float32)
    logits[0, -1] = 0.0
    tried = 0
    for seed in range(300):
        logits[0, :BLOCK] = np.random.default_rng(seed).normal(-9.0, 7.0, BLOCK)
        weights = filtered(logits, [Sampling()])[0].astype(np.float64)
        border = weights[:BLOCK].sum() / weights.sum()
        for number in (border, np.nextafter(border, 0.0), np.nextafter(border, 1.0)):
            assert weights[choose(logits, [Sampling()], [number])[0]] > 0.0
            tried += 1
    assert tried == 900


@given(st.integers(0, 2**63), st.integers(0, 10_000), st.integers(0, 1))
def test_the_random_number_is_a_pure_function(seed: int, position: int, draw: int) -> None:
    number = uniform(seed, position, draw)
    assert 0.0 <= number < 1.0
    assert number == uniform(seed, position, draw)
    assert number not in (uniform(seed + 1, position, draw), uniform(seed, position + 1, draw))
    assert number != uniform(seed, position, 1 - draw)


def test_random_numbers_are_spread_evenly_along_seeds_and_positions() -> None:
    for values in ([uniform(1, n) for n in range(4096)], [uniform(n, 1) for n in range(4096)]):
        counts = np.bincount((np.array(values) * 16).astype(int), minlength=16)
        # 256 expected in each of 16; the 99.99 % point of chi-squared with 15 degrees is 44.3.
        assert ((counts - 256) ** 2 / 256).sum() < 44.3
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.06
    assert len({mix(seed, position) for seed in range(64) for position in range(64)}) == 4096


def shaped(
    sampling: Sampling, row: list[float], prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()
) -> list[float]:
    logits = np.array(row, np.float32)
    Shaping(sampling, biases(sampling), len(row), prompt, output).apply(logits)
    return [float(value) for value in logits]


def test_bias_is_added_and_banned_tokens_are_impossible() -> None:
    assert shaped(Sampling(logit_bias={1: 2.5, 2: -100.0}), [1.0, 1.0, 1.0]) == [1.0, 3.5, -99.0]
    logits = np.ones(3, np.float32)
    Shaping(Sampling(), biases(Sampling(logit_bias={1: 100.0}), banned=(1,)), 3, (), ()).apply(logits)
    assert logits.tolist() == [1.0, -np.inf, 1.0]


def test_the_repetition_penalty_counts_prompt_and_output_once() -> None:
    sampling = Sampling(repetition_penalty=2.0)
    assert shaped(sampling, [4.0, -4.0, 4.0, 4.0], prompt=(0, 1, 1), output=(2, 2)) == [2.0, -8.0, 2.0, 4.0]


def test_the_smallest_repetition_penalty_divides_by_no_zero() -> None:
    assert shaped(Sampling(repetition_penalty=1e-300), [1.0, -1.0], prompt=(0, 1)) == pytest.approx([100.0, -0.01])


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    sampling = Sampling(presence_penalty=1.0, frequency_penalty=0.25)
    assert shaped(sampling, [4.0, 4.0, 4.0], prompt=(0,), output=(1, 2, 2)) == [4.0, 2.75, 2.5]


def test_penalties_of_a_resumed_sequence_are_those_of_the_first_attempt() -> None:
    sampling = Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5)
    first = Shaping(sampling, {}, 10, (1, 2), ())
    for token in (3, 3, 4):
        first.observe(token)
    one, other = np.ones(10, np.float32), np.ones(10, np.float32)
    first.apply(one)
    Shaping(sampling, {}, 10, (1, 2), (3, 3, 4)).apply(other)
    assert one.tolist() == other.tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(logit_bias={1: 1.0}),
        Sampling(repetition_penalty=1.1),
        Sampling(presence_penalty=-0.1),
        Sampling(frequency_penalty=0.1),
    ],
)
def test_settings_that_change_logits_are_known(sampling: Sampling) -> None:
    assert Shaping.wanted(sampling, biases(sampling))


@given(rows())
def test_log_probabilities_are_those_of_the_model(logits: Logits) -> None:
    logprobs = log_softmax(logits)
    np.testing.assert_allclose(np.exp(logprobs.astype(np.float64)).sum(axis=1), 1.0, rtol=1e-5)
    for row, expected in zip(logprobs, logits, strict=True):
        np.testing.assert_allclose(np.exp(row.astype(np.float64)), softmax(expected), rtol=1e-3, atol=1e-7)


@given(rows(1), st.integers(0, VOCAB + 5))
def test_the_likeliest_are_ranked_and_ties_go_by_id(logits: Logits, count: int) -> None:
    expected = sorted(range(VOCAB), key=lambda token: (-logits[0][token], token))[:count]
    assert likeliest(logits[0], count) == expected
