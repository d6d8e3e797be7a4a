"""Two engines, one model: the same tokens in, the same text out, logits within rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.contracts.engines import (
    GREEDY,
    MODEL,
    Outcome,
    assert_alike,
    chat,
    found_for_gguf,
    generation,
    load,
    run_one,
)
from tests.contracts.files import in_float32
from tests.engines.reading import prepare
from worker.engines.base import Engine, EngineSpec
from worker.requests import Prompt, ResponseFormat, Sampling

if len(found_for_gguf()) < 2:
    pytest.skip("only one engine is installed here", allow_module_level=True)

RANKED = 40
QUESTIONS = [
    "Tell me a story about a fox.",
    "Tell me a story about a dragon and a baker.",
    "Count from 7 to 120.",
    "Count from 95 to 130.",
    "What is 12 + 30?",
    "What is 7 + 8?",
    "Repeat after me: the quick brown fox jumps over it.",
    "Who are you?",
]
TEXTS = [
    "Hello, World! It's 2024-12-31 23:59; don't panic...",
    "  leading and   inner\t\tspaces \n\n\nand lines\r\n ",
    "naïve café, Ünïcödé, ELF'S he'll WE'VE",
    "日本語の文章、한국어, שלום עולם, العربية, हिन्दी",
    "👩‍👩‍👧 👍🏽 🏳️‍🌈 e\u0301 \u200b\u00a0 ½ ² ①",
    "def f(x): return {x: [1, 2.5e-3]}  # <|user|> <|end|> <|nothing|>",
    "1234567890 3.14159 0x1F a1b2c3",
    "\0\x01\x7f",
]


def opened(model: Path) -> Iterator[tuple[Engine, Engine]]:
    first, second = (load(name, EngineSpec(model=str(model), slots=2, context_tokens=512)) for name in found_for_gguf())
    yield first, second
    first.close()
    second.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Engine, Engine]]:
    yield from opened(MODEL)


@pytest.fixture(scope="module")
def float32_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    path = tmp_path_factory.mktemp("models") / "float32.gguf"
    in_float32(MODEL, path)
    yield from opened(path)


def differences(first: Outcome, second: Outcome) -> NDArray[np.float64]:
    """How far the probabilities of the likeliest tokens are apart, at each position up to where the texts part."""
    apart = []
    for one, two, tops, others in zip(first.ids, second.ids, first.top, second.top, strict=False):
        theirs = {top.id: math.exp(top.logprob) for top in others}
        apart += [abs(math.exp(top.logprob) - theirs[top.id]) for top in tops if top.id in theirs]
        if one != two:
            break
    assert len(apart) > RANKED / 2
    return np.array(apart)


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_the_same_tokens(pair: tuple[Engine, Engine], text: str) -> None:
    for prompt in (Prompt(text=text), chat(text, system=text[::-1])):
        first, second = (prepare(engine, generation(prompt)).prompt_ids for engine in pair)
        assert first == second


@pytest.mark.parametrize("words", QUESTIONS)
def test_on_the_same_numbers_texts_are_equal(float32_pair: tuple[Engine, Engine], words: str) -> None:
    ranked = Sampling(temperature=0.0, logprobs=RANKED)
    first, second = (run_one(engine, generation(words, ranked, max_tokens=160)) for engine in float32_pair)
    assert (first.text, first.ids, first.finish) == (second.text, second.ids, second.finish)
    # What is left is the 16-bit cache of llama.cpp.
    assert np.max(differences(first, second)) < 0.01


@pytest.mark.parametrize("words", QUESTIONS)
def test_on_the_bundled_model_they_agree_within_rounding(pair: tuple[Engine, Engine], words: str) -> None:
    ranked = Sampling(temperature=0.0, logprobs=RANKED)
    first, second = (run_one(engine, generation(words, ranked, max_tokens=160)) for engine in pair)
    assert_alike(first, second)
    # llama.cpp multiplies 8-bit weights with activations that it rounds to 8 bits as well; numpy does not.
    assert np.max(differences(first, second)) < 0.05


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, repetition_penalty=1.3, logprobs=5),
        Sampling(temperature=0.0, frequency_penalty=0.7, presence_penalty=0.3, logprobs=5),
        Sampling(temperature=0.0, response_format=ResponseFormat(type="json_object"), logprobs=5),
        Sampling(temperature=0.0, ignore_eos=True, logprobs=5),
    ],
)
def test_settings_mean_the_same(float32_pair: tuple[Engine, Engine], sampling: Sampling) -> None:
    first, second = (run_one(engine, generation(QUESTIONS[0], sampling, max_tokens=40)) for engine in float32_pair)
    assert (first.text, first.finish) == (second.text, second.finish)


def test_drawn_tokens_come_from_the_same_distribution(pair: tuple[Engine, Engine]) -> None:
    """The random numbers differ between engines, the shares do not: 1,000 first tokens of each."""
    settings = {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02}
    shares = []
    for engine in pair:
        counts: dict[int, int] = {}
        for seed in range(1000):
            (token,) = run_one(engine, generation(QUESTIONS[1], Sampling(seed=seed, **settings), max_tokens=1)).ids  # type: ignore[arg-type]
            counts[token] = counts.get(token, 0) + 1
        shares.append(counts)
    for token in shares[0].keys() | shares[1].keys():
        assert abs(shares[0].get(token, 0) - shares[1].get(token, 0)) < 90


def test_a_sequence_may_move_from_one_engine_to_the_other(float32_pair: tuple[Engine, Engine]) -> None:
    first, second = float32_pair
    ranked = Sampling(temperature=0.0, logprobs=5)
    whole = run_one(first, generation("Count from 7 to 120.", ranked, max_tokens=60))
    cut = len(whole.ids) // 2
    rest = run_one(second, generation("Count from 7 to 120.", GREEDY, generated=whole.ids[:cut], max_tokens=60))
    assert whole.text.endswith(rest.text) and rest.finish == whole.finish
