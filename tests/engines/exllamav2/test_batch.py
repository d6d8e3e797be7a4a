"""ExLlamaV2's generator under our scheduling: many pages, many jobs, shared prefixes, speculation, no page lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.contracts.engines import (
    GREEDY,
    MODEL,
    Driver,
    assert_alike,
    chat,
    exported,
    generation,
    load,
    run_one,
)
from tests.engines.exllamav2 import cpu
from tests.engines.reading import prepare
from worker.engines import exllamav2
from worker.engines.base import Engine, EngineSpec, LoadProgress
from worker.engines.exllamav2.options import PAGE_TOKENS
from worker.errors import InvalidParams, ModelError
from worker.requests import Prompt, Sampling

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

SLOTS = 8
CONTEXT = 1024
RANKED = Sampling(temperature=0.0, logprobs=5)
STORY = "Once there was an old lighthouse by the sea, and every evening a small fox came to look at its light. "
QUESTIONS = [
    "Count from 7 to 120.",
    "Count from 95 to 130.",
    "What is 12 + 30?",
    "What is 7 + 8?",
    "Repeat after me: the quick brown fox jumps over it.",
    "Who are you?",
    "Tell me a story about a fox.",
    "Tell me a story about a dragon and a baker.",
]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Engine]:
    engine = load("exllamav2", EngineSpec(slots=SLOTS, context_tokens=CONTEXT))
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    empty = loaded.capacity()
    assert empty.kv_tokens_free == empty.kv_tokens_total == SLOTS * CONTEXT
    yield loaded
    lost = loaded.capacity() != empty
    for lease in ["s", *map(str, range(40))]:
        loaded.leave(lease)  # a test that fails leaves them behind
    assert not lost, "pages or slots were lost"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The numpy engine on the very weights of the folder: those in float16."""
    from worker.bundled.export import write_gguf
    from worker.bundled.weights import from_gguf

    path = tmp_path_factory.mktemp("oracle") / "float16.gguf"
    write_gguf(from_gguf(MODEL), path, "f16")
    engine = load("numpy_llama", EngineSpec(model=str(path), slots=1, context_tokens=CONTEXT))
    yield engine
    engine.close()


def text_of(tokens: int) -> str:
    """Text of about `tokens` tokens."""
    return (STORY * (tokens // 10 + 1))[: tokens * 4]


def test_eight_jobs_at_once_are_token_for_token_the_oracle(engine: Engine, oracle: Engine) -> None:
    driver = Driver(engine)
    for number, words in enumerate(QUESTIONS):
        driver.admit(generation(words, GREEDY, name=str(number), max_tokens=64))
    driver.run(prefill_tokens_max=40)
    equal = 0
    for number, words in enumerate(QUESTIONS):
        expected = run_one(oracle, generation(words, RANKED, max_tokens=64))
        assert_alike(expected, driver.outcomes[str(number)])
        equal += expected.ids == driver.outcomes[str(number)].ids
    # Where two tokens are all but equally likely, float16 may choose the other.
    assert equal >= len(QUESTIONS) - 2


def test_logits_are_those_of_the_oracle(engine: Engine, oracle: Engine) -> None:
    ranked = Sampling(temperature=0.0, logprobs=40)
    ours, theirs = (run_one(one, generation(QUESTIONS[0], ranked, max_tokens=30)) for one in (engine, oracle))
    for tops, others in zip(ours.top, theirs.top, strict=False):
        other = {top.id: top.logprob for top in others}
        assert max(abs(top.logprob - other[top.id]) for top in tops[:20] if top.id in other) < 0.1


@pytest.mark.parametrize("budget", [100, 256, 10_000])
def test_a_prompt_over_several_pages_is_the_same_in_any_pieces(engine: Engine, oracle: Engine, budget: int) -> None:
    prompt = Prompt(text=f"{budget}. " + text_of(700))
    outcome = run_one(engine, generation(prompt, max_tokens=20), budget)
    done = [event.done for event in outcome.prefilled]
    assert len(prepare(engine, generation(prompt)).prompt_ids) > 2 * PAGE_TOKENS
    assert done == sorted(set(done)) and done[-1] == outcome.prefilled[-1].total
    assert_alike(run_one(oracle, generation(prompt, RANKED, max_tokens=20)), outcome)


def test_output_may_cross_pages(engine: Engine, oracle: Engine) -> None:
    settings = Sampling(temperature=0.0, ignore_eos=True, logprobs=5)
    prompt = Prompt(text=text_of(230))
    outcome = run_one(engine, generation(prompt, settings, max_tokens=300))
    assert len(outcome.ids) == 300
    assert_alike(run_one(oracle, generation(prompt, settings, max_tokens=300)), outcome)


def test_equal_prompts_share_their_pages(engine: Engine) -> None:
    prompt = Prompt(text="Shared by all. " + text_of(600))
    driver = Driver(engine)
    before = engine.capacity().kv_tokens_free
    whole = prepare(engine, generation(prompt, max_tokens=8)).tokens_max
    pages = -(-whole // PAGE_TOKENS)
    for number in range(4):
        driver.admit(generation(prompt, Sampling(seed=number, logprobs=0), name=str(number), max_tokens=8))
    # Two full pages are held once; the last, where outputs begin to differ, by each.
    assert before - engine.capacity().kv_tokens_free == (pages - 1 + 4) * PAGE_TOKENS
    driver.run()
    assert len({outcome.text for outcome in driver.outcomes.values()}) > 1


def test_a_prompt_that_another_is_computing_is_followed(engine: Engine) -> None:
    prompt = Prompt(text="Followed closely. " + text_of(500))
    driver = Driver(engine)
    first = driver.admit(generation(prompt, name="0", max_tokens=4))
    for _ in range(3):
        driver.step(50)
    second = driver.admit(generation(prompt, name="1", max_tokens=4))
    assert first.prefilled[-1].done == second.cached == 150
    driver.run()
    assert first.ids == second.ids


def test_what_left_in_the_middle_of_its_prompt_is_found_again(engine: Engine, oracle: Engine) -> None:
    prompt = Prompt(text="Left halfway. " + text_of(600))
    driver = Driver(engine)
    driver.admit(generation(prompt, name="0", max_tokens=4))
    for _ in range(4):
        driver.step(100)
    engine.leave("0")
    again = run_one(engine, generation(prompt, max_tokens=12))
    assert again.cached == 400
    assert_alike(run_one(oracle, generation(prompt, RANKED, max_tokens=12)), again)


def test_a_page_is_found_only_at_the_place_that_it_was_computed_for() -> None:
    """Two pages come to have the same contents: the library renames one, and forgets which page it followed."""
    small = load(
        "exllamav2",
        EngineSpec(slots=SLOTS, context_tokens=CONTEXT, options={"cache_tokens": "2048", "slice_tokens": "0"}),
    )
    try:
        driver = Driver(small)
        first = generation(Prompt(text="A. " + text_of(560)), name="0", max_tokens=8)
        ids = prepare(small, first).prompt_ids
        assert 2 * PAGE_TOKENS < len(ids) < 3 * PAGE_TOKENS - 8
        driver.run([first], 600)
        driver.admit(generation("Z", Sampling(ignore_eos=True), name="1", max_tokens=600))
        # Takes the pages of the first one's prompt for its own output, and never comes to write them.
        driver.admit(generation(Prompt(text="X. " + text_of(280)), GREEDY, name="2", max_tokens=700))
        small.leave("1")
        driver.admit(msgspec.structs.replace(first, lease="3"))
        while not driver.outcomes["3"].ended:
            driver.step(600)
        small.leave("2")
        text = b"".join(map(small.reader.vocabulary.token_bytes, ids[PAGE_TOKENS : PAGE_TOKENS + 150])).decode()  # type: ignore[attr-defined]
        again = generation(Prompt(text=text), max_tokens=8)
        assert prepare(small, again).prompt_ids[:8] == ids[PAGE_TOKENS : PAGE_TOKENS + 8]
        assert run_one(small, again, 600).cached == 0
    finally:
        small.close()


def test_pages_decide_who_fits(engine: Engine) -> None:
    small = load("exllamav2", EngineSpec(slots=SLOTS, context_tokens=CONTEXT, options={"cache_tokens": "1024"}))
    try:
        assert small.capacity().kv_tokens_total == 4 * PAGE_TOKENS and small.info.context_tokens == CONTEXT
        driver = Driver(small)
        driver.admit(generation(Prompt(text=text_of(500)), name="0", max_tokens=200))
        assert small.capacity().kv_tokens_free == PAGE_TOKENS and not small.capacity().fits(PAGE_TOKENS + 1)
        driver.admit(generation(QUESTIONS[2], name="1", max_tokens=20))
        assert not small.capacity().fits(1)
        with pytest.raises(AssertionError):
            small.admit(prepare(small, generation(QUESTIONS[3], name="2", max_tokens=20)))
        driver.run()
        assert small.capacity().kv_tokens_free == small.capacity().kv_tokens_total
    finally:
        small.close()


def test_a_prompt_that_is_there_takes_no_room(engine: Engine) -> None:
    """Others with the same beginning need pages for the rest alone."""
    small = load("exllamav2", EngineSpec(slots=SLOTS, context_tokens=CONTEXT, options={"cache_tokens": "1024"}))
    prompt = Prompt(text=text_of(600))
    alone = run_one(engine, generation(prompt, max_tokens=20), 600)
    try:
        driver = Driver(small)
        driver.admit(generation(prompt, name="0", max_tokens=20))
        assert len(prepare(small, generation(prompt)).prompt_pages) == 2
        assert small.capacity().kv_tokens_free == PAGE_TOKENS
        assert not small.fits(prepare(small, generation(Prompt(text="Other " + text_of(600)), max_tokens=20)))
        driver.step(100)  # the prompt is not computed yet, the other waits for it
        driver.admit(generation(prompt, name="1", max_tokens=20))
        assert small.capacity().kv_tokens_free == 0
        assert not small.fits(prepare(small, generation(prompt, name="2", max_tokens=20)))
        driver.run(prefill_tokens_max=600)
        assert [outcome.ids for outcome in driver.outcomes.values()] == [alone.ids] * 2
        assert small.capacity().kv_tokens_free == small.capacity().kv_tokens_total
    finally:
        small.close()


def test_more_than_the_context_is_refused_before_it_takes_room(engine: Engine) -> None:
    with pytest.raises(InvalidParams, match=str(CONTEXT)):
        prepare(engine, generation(Prompt(text=text_of(3 * CONTEXT))))


def test_no_page_is_lost_by_joining_leaving_and_ending_at_random(engine: Engine) -> None:
    order = random.Random(3)
    driver = Driver(engine)
    left = set()
    for number in range(40):
        prompt = Prompt(text=text_of(order.choice([5, 200, 300, 520])) + order.choice(["", "And then", "12"]))
        wanted = generation(prompt, Sampling(seed=number), name=str(number), max_tokens=order.choice([1, 9, 60]))
        if engine.capacity().fits(prepare(engine, wanted).tokens_max):
            driver.admit(wanted)
        for _ in range(order.randrange(3)):
            driver.step(order.choice([0, 30, 300]))
        live = [name for name, outcome in driver.outcomes.items() if not outcome.ended and name not in left]
        if live and order.random() < 0.4:
            leaver = order.choice(live)
            left.add(leaver)
            engine.leave(leaver)
    for name in left:
        driver.outcomes.pop(name)
    driver.run(prefill_tokens_max=300)


# ---- speculation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ngram", "draft_model"])
def speculating(request: pytest.FixtureRequest) -> Iterator[Engine]:
    value = "true" if request.param == "ngram" else str(Path(exported().name) / "demo")
    engine = load("exllamav2", EngineSpec(slots=4, context_tokens=512, options={request.param: value}))
    yield engine
    engine.close()


def test_speculation_changes_no_token(speculating: Engine, oracle: Engine) -> None:
    driver = Driver(speculating)
    for number, words in enumerate(QUESTIONS[:4]):
        driver.admit(generation(words, GREEDY, name=str(number), max_tokens=40))
    steps = 0
    while not all(outcome.ended for outcome in driver.outcomes.values()):
        driver.step()
        steps += 1
    for number, words in enumerate(QUESTIONS[:4]):
        expected = run_one(oracle, generation(words, RANKED, max_tokens=40))
        assert_alike(expected, driver.outcomes[str(number)])
    assert speculating.capacity().kv_tokens_free == speculating.capacity().kv_tokens_total
    assert steps < 40, "several tokens a step"


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 17])
def test_speculation_keeps_budgets_exact(speculating: Engine, max_tokens: int) -> None:
    settings = Sampling(temperature=0.0, ignore_eos=True)
    outcome = run_one(speculating, generation(QUESTIONS[1], settings, max_tokens=max_tokens))
    assert (len(outcome.ids), outcome.finish) == (max_tokens, "length")


def test_speculation_may_fill_the_context(speculating: Engine) -> None:
    settings = Sampling(temperature=0.0, ignore_eos=True)
    context = speculating.info.context_tokens
    outcome = run_one(speculating, generation(Prompt(text=text_of(300)), settings, max_tokens=10_000))
    used = len(prepare(speculating, generation(Prompt(text=text_of(300)))).prompt_ids) + len(outcome.ids)
    assert (used, outcome.finish) == (context, "length")


def test_speculation_may_end_where_a_page_does(speculating: Engine) -> None:
    """Tokens that are guessed beyond the budget need a page of their own."""
    settings = Sampling(temperature=0.0, ignore_eos=True)
    prompt = Prompt(text=text_of(200))
    left = PAGE_TOKENS - len(prepare(speculating, generation(prompt)).prompt_ids)
    outcome = run_one(speculating, generation(prompt, settings, max_tokens=left))
    assert (len(outcome.ids), outcome.finish) == (left, "length")


def test_a_drawn_sequence_is_the_same_with_speculation(speculating: Engine, engine: Engine) -> None:
    same = 0
    for seed in range(4):
        wanted = generation(QUESTIONS[6], Sampling(seed=seed, temperature=0.8), max_tokens=24)
        plain, guessed = (run_one(one, wanted) for one in (engine, speculating))
        same += plain.ids == guessed.ids
    assert same >= 3


def test_speculation_heals_a_prompt_alike(speculating: Engine, oracle: Engine) -> None:
    settings = Sampling(temperature=0.0, token_healing=True, logprobs=5)
    wanted = generation(Prompt(text="Once upon a time there was a f"), settings, max_tokens=40)
    healed = run_one(speculating, wanted)
    assert healed.text.startswith("riendly ")
    assert_alike(run_one(oracle, wanted), healed)


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_without_memory_the_figures_are_reported() -> None:
    folder = Path(exported().name) / "demo"
    with (
        cpu.gpu(memory_bytes=1 << 20),
        pytest.raises(ModelError, match=r"weights 0\.0\d GiB, KV cache .* free on 1 GPU: 0\.00 GiB"),
    ):
        exllamav2.load(EngineSpec(model=str(folder)), lambda _progress: None)


def test_the_cache_is_as_large_as_memory_allows() -> None:
    folder = Path(exported().name) / "demo"
    # A GiB is left free; a token of this model takes 2 x 4 layers x 4 heads x 64 x 2 bytes or so.
    with cpu.gpu(memory_bytes=(1 << 30) + (24 << 20)):
        engine = exllamav2.load(EngineSpec(model=str(folder), slots=64, context_tokens=512), lambda _progress: None)
    try:
        total = engine.capacity().kv_tokens_total
        assert 0 < total < 64 * 512 and total % PAGE_TOKENS == 0
    finally:
        engine.close()


def test_a_chat_is_rendered_as_the_other_engines_do(engine: Engine, oracle: Engine) -> None:
    wanted = generation(chat("Hello", system="Be kind."))
    assert prepare(engine, wanted).prompt_ids == prepare(oracle, wanted).prompt_ids


def test_everything_is_computed_once_before_the_first_request() -> None:
    """Warm-up is reported as progress, runs prompts and whole batches, and leaves no page behind."""
    folder = Path(exported().name) / "demo"
    reported: list[LoadProgress] = []
    for options in ({}, {"ngram": "true"}, {"cache_tokens": "512"}):
        reported.clear()
        with cpu.gpu():
            engine = exllamav2.load(
                EngineSpec(model=str(folder), slots=4, context_tokens=512, options=options), reported.append
            )
        assert [(one.done, one.total) for one in reported if one.stage == "warm-up"] == [(0, 2), (1, 2), (2, 2)]
        assert engine.capacity().kv_tokens_free == engine.capacity().kv_tokens_total
        assert run_one(engine, generation("Count from 1 to 9")).text.startswith("1 2 3")
        engine.close()


@pytest.mark.parametrize("words", ["a", "ab", "1 2"])
def test_prompts_too_short_to_guess_from_are_no_trouble(words: str) -> None:
    engine = load("exllamav2", EngineSpec(slots=2, context_tokens=512, options={"ngram": "true"}))
    driver = Driver(engine)
    driver.admit(generation("Count from 1 to 20", name="0"))
    driver.step()
    driver.admit(generation(Prompt(text=words), name="1", max_tokens=12))
    driver.run()
    assert driver.outcomes["0"].text.startswith("1 2 3 4 5")
    assert driver.outcomes["1"].finish is not None
    engine.close()
