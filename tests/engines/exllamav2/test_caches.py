"""Quantised KV caches: the library's own code for them, over a stand-in for the two functions that make the codes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.engines import Driver, generation, load, run_one
from tests.engines.exllamav2 import cpu
from tests.engines.reading import prepare
from worker.engines.base import Engine, EngineSpec
from worker.engines.exllamav2.options import PAGE_TOKENS
from worker.requests import Prompt, Sampling

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

STORY = "Once there was an old lighthouse by the sea, and every evening a small fox came to look at its light. "


@pytest.fixture(scope="module", params=["q8", "q6", "q4"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    options = {"cache": str(request.param), "cache_tokens": "1024", "slice_tokens": "64"}
    engine = load("exllamav2", EngineSpec(slots=4, context_tokens=1024, options=options))
    assert engine.info.details["cache"] == request.param
    yield engine
    assert engine.capacity().kv_tokens_free == 1024, "pages were lost"
    engine.close()


def test_counting_is_exact(engine: Engine) -> None:
    driver = Driver(engine)
    for number in range(4):
        driver.admit(generation(f"Count from {number + 1} to {number + 20}", name=str(number), max_tokens=100))
    driver.run()
    for number in range(4):
        assert driver.outcomes[str(number)].text == " ".join(map(str, range(number + 1, number + 21)))


def test_pages_are_shared_copied_and_grown(engine: Engine) -> None:
    settings = Sampling(temperature=0.0, ignore_eos=True)
    prompt = Prompt(text=STORY * 13)
    tokens = len(prepare(engine, generation(prompt)).prompt_ids)
    assert tokens > PAGE_TOKENS
    first = run_one(engine, generation(prompt, settings, max_tokens=40))
    again = run_one(engine, generation(prompt, settings, max_tokens=40))
    assert again.cached >= tokens - 1 and len(first.ids) == len(again.ids) == 40
    # The same cache gives the same words.
    assert again.ids[:20] == first.ids[:20]


def test_paused_sequences_go_on(engine: Engine) -> None:
    settings = Sampling(temperature=0.0, ignore_eos=True)
    driver = Driver(engine)
    for number in range(3):
        driver.admit(generation(Prompt(text=f"{number}. {STORY * 3}"), settings, name=str(number), max_tokens=300))
    for _ in range(2500):
        if all(outcome.ended for outcome in driver.outcomes.values()):
            break
        driver.step()
    assert {len(outcome.ids) for outcome in driver.outcomes.values()} == {300}
    assert sum(outcome.pauses for outcome in driver.outcomes.values()) > 0
