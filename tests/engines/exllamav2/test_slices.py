"""Long outputs in slices: pages are had when they are needed, and sequences that find none are paused and go on."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.contracts.engines import Driver, assert_alike, chat, generation, load, run_one
from tests.engines.exllamav2 import cpu
from tests.engines.reading import prepare
from worker.engines.base import Engine, EngineSpec, Paused
from worker.engines.exllamav2.options import PAGE_TOKENS
from worker.requests import Prompt, ResponseFormat, Sampling

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

PAGES = 5
LONG = Sampling(temperature=0.0, ignore_eos=True, logprobs=5)
STORY = "Once there was an old lighthouse by the sea, and every evening a small fox came to look at its light. " * 12


def start(**options: str) -> Engine:
    given = {"cache_tokens": str(PAGES * PAGE_TOKENS), "slice_tokens": "64", **options}
    return load("exllamav2", EngineSpec(slots=4, context_tokens=1024, options=given))


@pytest.fixture(scope="module")
def loaded() -> Iterator[Engine]:
    engine = start()
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    yield loaded
    for number in range(4):
        loaded.leave(str(number))
    assert loaded.capacity().kv_tokens_free == PAGES * PAGE_TOKENS, "pages were lost"


@pytest.fixture(scope="module")
def roomy() -> Iterator[Engine]:
    engine = start(cache_tokens="8192", slice_tokens="0")
    yield engine
    engine.close()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(text=f"{number}. {STORY[: 300 + 40 * number]}") for number in range(count)]


def test_a_slice_is_reserved_and_not_the_budget(engine: Engine) -> None:
    driver = Driver(engine)
    driver.admit(generation("Who are you?", LONG, name="0", max_tokens=900))
    assert engine.capacity().kv_tokens_free == (PAGES - 1) * PAGE_TOKENS
    assert prepare(engine, generation("Who are you?", LONG, max_tokens=900)).tokens_max > 900


def test_one_alone_grows_in_place_and_is_never_paused(engine: Engine, roomy: Engine) -> None:
    wanted = generation(prompts(1)[0], LONG, name="0", max_tokens=700)
    driver = Driver(engine)
    outcome = driver.admit(wanted)
    while not outcome.ended:
        driver.step()
    assert outcome.pauses == 0 and len(outcome.ids) == 700
    assert_alike(run_one(roomy, wanted), outcome)


def test_several_take_turns_and_end_as_alone(engine: Engine, roomy: Engine) -> None:
    """Three sequences that need four pages each, in five: each token comes once, and is the one it would have been."""
    driver = Driver(engine)
    wanted = [generation(prompt, LONG, name=str(n), max_tokens=650) for n, prompt in enumerate(prompts(3))]
    driver.run(wanted, steps_max=3000)
    outcomes = driver.outcomes.values()
    assert sum(outcome.pauses for outcome in outcomes) >= 2
    assert {len(outcome.ids) for outcome in outcomes} == {650}
    for one in wanted:
        assert_alike(run_one(roomy, one), driver.outcomes[one.lease])


def until_paused(driver: Driver) -> str:
    for _ in range(2000):
        paused = [event.lease for event in driver.step() if isinstance(event, Paused)]
        if paused:
            return paused[0]
    raise AssertionError("nobody was paused")


def test_a_paused_sequence_may_leave(engine: Engine) -> None:
    driver = Driver(engine)
    for number, prompt in enumerate(prompts(3)):
        driver.admit(generation(prompt, LONG, name=str(number), max_tokens=650))
    gone = until_paused(driver)
    engine.leave(gone)
    assert not any(event.lease == gone for event in engine.step(64))


@pytest.mark.parametrize(
    ("prompt", "settings", "expected"),
    [
        (chat("Count from 1 to 99"), Sampling(stop=(" 96 97 98",)), "1 2 3"),
        (
            chat("Count from 1 to 99"),
            Sampling(response_format=ResponseFormat(type="regex", pattern=r"[0-9 ]{10,}99")),
            "1 2 3",
        ),
        (
            Prompt(text="Once upon a time there was a f"),
            Sampling(token_healing=True, ignore_eos=True),
            "riendly ",
        ),
    ],
    ids=["a stop string", "a guide", "a healed prompt"],
)
def test_what_a_sequence_knows_survives_a_pause(
    monkeypatch: pytest.MonkeyPatch, prompt: Prompt, settings: Sampling, expected: str
) -> None:
    """Paused after every single token, withheld or not, the text is what it is without a pause."""
    pausing = start(slice_tokens="1")
    try:
        greedy = msgspec.structs.replace(settings, temperature=0.0)
        wanted = generation(prompt, greedy, name="0", max_tokens=300)
        whole = run_one(pausing, wanted)
        _pause_always(pausing, monkeypatch)
        driver = Driver(pausing)
        outcome = driver.admit(wanted)
        for _ in range(1000):
            if outcome.ended:
                break
            driver.step(1024)
        assert outcome.pauses > 100
        assert (outcome.text, outcome.ids, outcome.finish) == (whole.text, whole.ids, whole.finish)
        assert outcome.text.startswith(expected)
    finally:
        pausing.close()


def _pause_always(engine: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step find that there is no room."""
    from worker.engines.exllamav2.job import SequenceJob

    monkeypatch.setattr(SequenceJob, "has_room", lambda job: not job.ready)


def test_a_failed_pass_after_growing_is_repeated(
    engine: Engine, roomy: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay allocates what the sequence has grown to."""
    wanted = generation(prompts(1)[0], LONG, name="0", max_tokens=400)
    driver = Driver(engine)
    outcome = driver.admit(wanted)
    while len(outcome.ids) < 330:
        driver.step()
    with monkeypatch.context() as patch:
        model = engine._loaded.model  # type: ignore[attr-defined]
        real, armed = model.forward_chunk, [True]

        def forward_chunk(**arguments: object) -> object:
            if armed:
                armed.clear()
                raise RuntimeError("a kernel did not like this")
            return real(**arguments)

        patch.setattr(model, "forward_chunk", forward_chunk)
        driver.step()
    while not outcome.ended:
        driver.step(1024)
    assert len(outcome.ids) == 400
    assert_alike(run_one(roomy, wanted), outcome)


@pytest.mark.parametrize("option", ["ngram", "draft_model"])
def test_guessed_tokens_have_room_too(roomy: Engine, option: str) -> None:
    from pathlib import Path

    from tests.contracts.engines import exported

    value = "true" if option == "ngram" else str(Path(exported().name) / "demo")
    guessing = start(**{option: value, "slice_tokens": "5"})
    try:
        driver = Driver(guessing)
        wanted = [generation(prompt, LONG, name=str(n), max_tokens=500) for n, prompt in enumerate(prompts(2))]
        driver.run(wanted, steps_max=3000)
        assert {len(outcome.ids) for outcome in driver.outcomes.values()} == {500}
        for one in wanted:
            assert_alike(run_one(roomy, one), driver.outcomes[one.lease])
        assert guessing.capacity().kv_tokens_free == guessing.capacity().kv_tokens_total
    finally:
        guessing.close()
