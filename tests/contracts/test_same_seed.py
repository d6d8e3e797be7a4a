"""The same request with the same seed: the same tokens and the same log-probabilities, whatever runs beside it.

For engines that say that they are `deterministic`, on the bundled model and on SmolLM2, which has pieces that are long
enough for llama.cpp to compute them in another way.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.contracts.engines import MODEL, Driver, Outcome, chat, found_for_gguf, generation, ignore_progress, load
from tests.engines.reading import prepare
from tests.support.models import SMOLLM2, path_of
from worker.engines.base import Engine, EngineSpec, Generation
from worker.requests import Sampling

SLOTS, CONTEXT, MAX_TOKENS, ASKED = 16, 512, 6, 2
SHORE = " ".join(["the old lighthouse keeper walked slowly along the wet shore and looked for shells"] * 6)
SYSTEM = "You are a keeper of lighthouses, and you answer in one sentence. " * 4
BUDGETS = (50, 64, 2048)
"""Prompt tokens of a step: they cut the prompts in other places."""


def cases() -> list[object]:
    """Every engine here on the bundled model, and llama.cpp on SmolLM2 with one thread and with several.

    numpy computes a model of that size too slowly for a test.
    """
    names = found_for_gguf()
    bundled = [pytest.param((name, True, 1), id=f"{name}-bundled") for name in names]
    large = [pytest.param(("llama_cpp", False, threads), id=f"llama_cpp-SmolLM2-{threads}") for threads in (1, 4)]
    return bundled + (large if "llama_cpp" in names else [])


@pytest.fixture(scope="module", params=cases())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with room for sixteen."""
    name, small, threads = request.param
    spec = EngineSpec(
        model=str(MODEL if small else path_of(SMOLLM2)), slots=SLOTS, context_tokens=CONTEXT, threads=threads
    )
    running = load(name, spec, ignore_progress)
    yield running
    running.close()


def asked(number: int) -> Generation:
    """A long question of which every second one begins alike; greedy or drawn."""
    system = SYSTEM if number % 2 else None
    drawn = Sampling(seed=number, temperature=1.0, logprobs=0)
    sampling = drawn if number else Sampling(temperature=0.0, logprobs=0)
    prompt = chat(f"{number}: {SHORE} What did {number} find?", system=system)
    return generation(prompt, sampling, name=f"asked {number}", max_tokens=MAX_TOKENS)


def others(count: int) -> list[Generation]:
    """What runs beside it: prompts of many lengths, some of which begin like those that are asked."""
    return [
        generation(
            chat(" ".join([f"{number}", *SHORE.split()[: 3 + 9 * number]]), system=SYSTEM if number % 3 else None),
            Sampling(seed=100 + number, temperature=1.0),
            name=f"other {number}",
            max_tokens=MAX_TOKENS,
        )
        for number in range(count)
    ]


def alone(engine: Engine, wanted: Generation, budget: int = 64) -> Outcome:
    """What comes of it alone, in an engine of which no slot holds its prompt."""
    _forget(engine)
    return Driver(engine).run([wanted], budget)[wanted.lease]


def _forget(engine: Engine) -> None:
    """Fill every slot with something else."""
    fill = [
        generation(chat(f"{number}{number}{number}"), name=f"fill {number}", max_tokens=1) for number in range(SLOTS)
    ]
    Driver(engine).run(fill, 2048)


def same(one: Outcome, other: Outcome) -> bool:
    """Return whether all is equal, to the last bit."""
    return (one.ids, one.text, one.logprobs) == (other.ids, other.text, other.logprobs)


def test_the_engine_says_so(engine: Engine) -> None:
    assert engine.info.deterministic
    assert max(len(prepare(engine, asked(number)).prompt_ids) for number in range(ASKED)) > 100


def test_wherever_a_prompt_is_cut(engine: Engine) -> None:
    for number in range(ASKED):
        first = alone(engine, asked(number))
        assert all(same(first, alone(engine, asked(number), budget)) for budget in BUDGETS)


def test_beside_fifteen_others(engine: Engine) -> None:
    expected = [alone(engine, asked(number)) for number in range(ASKED)]
    for budget in BUDGETS:
        _forget(engine)
        driver = Driver(engine)
        for neighbour in others(SLOTS - ASKED):
            driver.admit(neighbour)
            driver.step(budget)
        outcomes = driver.run([asked(number) for number in range(ASKED)], budget)
        assert all(same(one, outcomes[f"asked {number}"]) for number, one in enumerate(expected))


def test_after_a_prefix_that_was_there(engine: Engine) -> None:
    for number in range(ASKED):
        expected = alone(engine, asked(number))
        again = Driver(engine).run([asked(number)])[f"asked {number}"]
        assert again.cached > 50
        assert same(expected, again)


def test_answers_that_share_a_prefill(engine: Engine) -> None:
    expected = alone(engine, asked(0))
    _forget(engine)
    many = [msgspec.structs.replace(asked(0), lease=f"choice {number}") for number in range(5)]
    outcomes = Driver(engine).run(many)
    assert all(same(expected, outcomes[one.lease]) for one in many)
    # The others have it all at once, from the one that computed it.
    assert sum(len(outcome.prefilled) == 1 for outcome in outcomes.values()) == len(many) - 1


def test_after_a_death_of_the_engine(engine: Engine) -> None:
    for number in range(ASKED):
        expected = alone(engine, asked(number))
        for place in (1, MAX_TOKENS - 1):
            resumed = msgspec.structs.replace(asked(number), generated=expected.ids[:place])
            rest = alone(engine, resumed)
            assert (rest.ids, rest.logprobs) == (expected.ids[place:], expected.logprobs[place:])
