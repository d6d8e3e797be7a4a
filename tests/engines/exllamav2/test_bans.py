"""Banned strings: tokens that led to one are taken back, others are chosen, and nothing of it is ever shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.contracts.engines import Driver, Outcome, generation, load, run_one
from tests.engines.exllamav2 import cpu
from tests.engines.reading import prepare
from worker.engines.base import Engine, EngineSpec
from worker.engines.exllamav2.options import PAGE_TOKENS
from worker.errors import InvalidParams
from worker.requests import Prompt, ResponseFormat, Sampling

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

COUNT = "Count from 1 to 20"
FOX = "Tell me a story about a fox."


@pytest.fixture(scope="module")
def loaded() -> Iterator[Engine]:
    engine = load("exllamav2", EngineSpec(slots=4, context_tokens=1024))
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    with cpu.nothing_lost(loaded, ("s", "0", "1", "2", "3")):
        yield loaded


def banning(*texts: str, **more: Any) -> Sampling:
    return Sampling(temperature=0.0, banned_strings=texts, **more)


def check(outcome: Outcome, *banned: str) -> None:
    """What holds of every outcome: no banned string, and ids that say exactly the text."""
    assert outcome.broke is None and outcome.finish is not None
    assert not any(text.lower() in outcome.text.lower() for text in banned)
    assert outcome.text == "".join(delta.text for delta in outcome.deltas)


def test_what_never_comes_changes_nothing(engine: Engine) -> None:
    plain = run_one(engine, generation(COUNT, Sampling(temperature=0.0), max_tokens=60))
    outcome = run_one(engine, generation(COUNT, banning("lighthouse", "1 2 4"), max_tokens=60))
    assert (outcome.text, outcome.ids, outcome.finish) == (plain.text, plain.ids, plain.finish)


@pytest.mark.parametrize("banned", ["4 5 6", "5", " 19 20", "2 3 4 5 6 7 8"])
def test_a_banned_string_is_never_shown(engine: Engine, banned: str) -> None:
    plain = run_one(engine, generation(COUNT, Sampling(temperature=0.0), max_tokens=60))
    outcome = run_one(engine, generation(COUNT, banning(banned), max_tokens=60))
    assert banned in plain.text
    check(outcome, banned)
    # Up to the token in which it begins everything is as it was.
    before = plain.text[: plain.text.index(banned)]
    assert outcome.text[: len(before) - 1] == before[:-1]


def test_case_does_not_matter(engine: Engine) -> None:
    plain = run_one(engine, generation(FOX, Sampling(temperature=0.0), max_tokens=80)).text
    first = plain.split()[0]
    check(run_one(engine, generation(FOX, banning(first.upper()), max_tokens=80)), first)


def test_all_ways_to_say_it_are_closed(engine: Engine) -> None:
    digits = [str(digit) for digit in range(10)]
    outcome = run_one(engine, generation(COUNT, banning(*digits), max_tokens=30))
    check(outcome, *digits)
    assert outcome.text or outcome.finish == "stop"


def test_a_rewind_over_a_page_leaves_the_pages_right(engine: Engine) -> None:
    """The prompt ends a few tokens before a page does, and what is taken back begins before and ends behind."""
    story = "Once there was an old lighthouse by the sea, and every evening a small fox came to look at its light. " * 9
    for spare in (3, 5, 9):
        text = story
        while len(prepare(engine, generation(Prompt(text=text))).prompt_ids) > PAGE_TOKENS - spare:
            text = text[1:]
        wanted = Prompt(text=text)
        plain = run_one(engine, generation(wanted, Sampling(temperature=0.0, ignore_eos=True), max_tokens=60))
        banned = plain.text[6:40]
        outcome = run_one(engine, generation(wanted, banning(banned, ignore_eos=True), max_tokens=60))
        check(outcome, banned)
        assert len(outcome.ids) == 60
        # The cache holds what the tokens say: the same output, reported as a resumed one, goes on alike.
        again = run_one(
            engine, generation(wanted, banning(banned, ignore_eos=True), max_tokens=60, generated=outcome.ids[:45])
        )
        assert again.ids == outcome.ids[45:]


def test_beside_others_and_resumed_it_is_the_same(engine: Engine) -> None:
    settings = Sampling(temperature=0.7, seed=3, banned_strings=("fox", "the"), repetition_penalty=1.1)
    alone = run_one(engine, generation(FOX, settings, max_tokens=50))
    check(alone, "fox", "the")
    driver = Driver(engine)
    for number in range(4):
        driver.admit(generation(FOX, settings, name=str(number), max_tokens=50))
    driver.run()
    same = sum(outcome.ids == alone.ids for outcome in driver.outcomes.values())
    assert same >= 3
    for count in (1, 7, 20):
        rest = run_one(engine, generation(FOX, settings, max_tokens=50, generated=alone.ids[:count]))
        check(rest, "fox", "the")


def test_pages_of_it_are_not_taken_for_the_beginning_of_a_prompt(engine: Engine) -> None:
    """What was generated behind a page's end is no beginning of a prompt, even if it reads like one."""
    settings = banning("never said", ignore_eos=True)
    engine._generator.reset_page_table()  # type: ignore[attr-defined]
    run_one(engine, generation(COUNT, settings, max_tokens=400))
    generator = engine._generator  # type: ignore[attr-defined]
    first_pages = [page for page in generator.all_pages if page.prev_hash is None and page.kv_position]
    prompt = prepare(engine, generation(COUNT)).prompt_ids
    for page in first_pages:
        assert page.sequence[0, 0].item() == prompt[0]


def test_after_a_failed_pass_it_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_one(engine, generation(COUNT, banning("4 5 6"), max_tokens=60)).text
    model = engine._loaded.model  # type: ignore[attr-defined]
    real = model.forward_chunk
    for after in (4, 8, 12):
        left = [after]

        def forward_chunk(left: list[int] = left, **arguments: Any) -> Any:
            left[0] -= not arguments.get("preprocess_only")
            if left[0] == 0:
                left[0] = -1
                raise RuntimeError("a kernel did not like this")
            return real(**arguments)

        monkeypatch.setattr(model, "forward_chunk", forward_chunk)
        outcome = run_one(engine, generation(COUNT, banning("4 5 6"), max_tokens=60))
        check(outcome, "4 5 6")
        assert outcome.text == expected


def test_a_healed_beginning_is_chosen_again_when_it_led_to_one(engine: Engine) -> None:
    settings = banning("riendly", token_healing=True, ignore_eos=True)
    wanted = generation(Prompt(text="Once upon a time there was a f"), settings, max_tokens=30)
    plain = run_one(engine, generation(wanted.prompt, banning("never said", token_healing=True), max_tokens=30))
    outcome = run_one(engine, wanted)
    assert plain.text.startswith("riendly ")
    check(outcome, "riendly")
    assert outcome.ids[0] != plain.ids[0] and len(outcome.ids) == 30


def test_what_it_cannot_be_combined_with_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidParams, match="response_format"):
        prepare(engine, generation(COUNT, banning("x", response_format=ResponseFormat(type="json_object"))))
    with pytest.raises(InvalidParams, match="must not be empty"):
        prepare(engine, generation(COUNT, banning("")))
    guessing = load("exllamav2", EngineSpec(slots=2, context_tokens=512, options={"ngram": "true"}))
    try:
        with pytest.raises(InvalidParams, match="without speculative decoding"):
            prepare(guessing, generation(COUNT, banning("x")))
    finally:
        guessing.close()
