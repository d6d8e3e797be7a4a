"""The same weights in Hugging Face transformers: an implementation that is nobody's here, in float32."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.engines import Driver, Outcome, exported, generation, load
from tests.engines.exllamav2 import cpu
from tests.engines.reading import prepare
from worker.engines.base import Engine, EngineSpec
from worker.requests import Sampling

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

NEAR_TIE = 0.01
"""Nats. ExLlamaV2 computes in float16: where two tokens are so close, either may be the likeliest."""

GREEDY = Sampling(temperature=0.0, logprobs=0)
TOKENS = 64
QUESTIONS = [
    "Count from 1 to 60.",
    "Count from 95 to 130.",
    "What is 12 + 30?",
    "What is 7 + 8?",
    "Repeat after me: the quick brown fox jumps over it.",
    "Who are you?",
    "Tell me a story about a fox.",
    "Tell me a story about a dragon and a baker.",
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = load("exllamav2", EngineSpec(slots=8, context_tokens=1024))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference() -> Any:
    import torch

    folder = Path(exported().name) / "demo"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: Any, prompt: tuple[int, ...], eos_ids: frozenset[int]) -> tuple[list[int], Any]:
    """What transformers generates up to an end token, that included, and its log-probabilities (tokens, vocab)."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
            return_dict_in_generate=True, output_logits=True, pad_token_id=5, eos_token_id=sorted(eos_ids),
        )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), torch.log_softmax(torch.cat(out.logits), -1)


@pytest.fixture(scope="module")
def fork(engine: Any, reference: Any) -> Callable[[str], float | None]:
    """By how many nats transformers itself prefers its token where the two part, None where they never do.

    All questions are asked of the engine at once, and each of transformers when it is wanted.
    """
    driver = Driver(engine)
    for words in QUESTIONS:
        driver.admit(generation(words, GREEDY, name=words, max_tokens=TOKENS))
    driver.run(prefill_tokens_max=40)
    eos_ids = engine.reader.vocabulary.eos_ids

    @cache
    def found(words: str) -> float | None:
        prompt_ids = prepare(engine, generation(words)).prompt_ids
        return first_fork(driver.outcomes[words], *greedy(reference, prompt_ids, eos_ids), eos_ids)

    return found


def first_fork(outcome: Outcome, expected: list[int], logprobs: Any, eos_ids: frozenset[int]) -> float | None:
    # An end token is not among our ids: it is the next one that both chose.
    ours = [*outcome.ids, *(expected[-1:] if outcome.finish == "stop" and expected[-1] in eos_ids else [])]
    same = next((at for at, pair in enumerate(zip(ours, expected, strict=False)) if pair[0] != pair[1]), None)
    # Where the tokens are the same, so are their probabilities.
    for at, logprob in enumerate(outcome.logprobs[:same]):
        assert logprob == pytest.approx(float(logprobs[at, ours[at]]), abs=0.05)
    if same is None:
        assert ours == expected
        return None
    return float(logprobs[same, expected[same]] - logprobs[same, ours[same]])


@pytest.mark.parametrize("words", QUESTIONS)
def test_greedy_output_of_eight_jobs_at_once_is_that_of_transformers(
    words: str, fork: Callable[[str], float | None]
) -> None:
    """Token for token, up to a place where transformers itself finds two tokens all but equally likely."""
    gap = fork(words)
    assert gap is None or gap < NEAR_TIE


def test_greedy_output_hardly_ever_parts_from_that_of_transformers(fork: Callable[[str], float | None]) -> None:
    forks = [words for words in QUESTIONS if fork(words) is not None]
    assert len(forks) <= 2, forks


def test_counting_is_exact_in_both(engine: Any, reference: Any) -> None:
    wanted = generation("Count from 1 to 60", GREEDY, max_tokens=200)
    outcome = Driver(engine).run([wanted])["s"]
    assert outcome.text == " ".join(map(str, range(1, 61))) and outcome.finish == "stop"
    expected, _ = greedy(reference, prepare(engine, wanted).prompt_ids, engine.reader.vocabulary.eos_ids)
    assert list(outcome.ids[:TOKENS]) == expected
