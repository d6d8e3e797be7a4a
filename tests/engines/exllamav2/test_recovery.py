"""What fails inside a step: the culprit alone, with its reason; the others go on as if nothing had been."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.contracts.engines import Driver, Outcome, assert_alike, generation, load, run_one
from tests.engines.exllamav2 import cpu
from worker.engines.base import Delta, Engine, EngineSpec
from worker.errors import ModelError
from worker.requests import Prompt, ResponseFormat, Sampling

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

torch = pytest.importorskip("torch")
RANKED = Sampling(temperature=0.0, logprobs=5)
QUESTIONS = ["Count from 7 to 120.", "Tell me a story about a fox.", "What is 12 + 30?", "Who are you?"]
PATTERN = "(red|green|blue), [1-9][0-9]{0,3}, 👍👍\\."
LONG = " ".join(["the old lighthouse keeper walked slowly along the wet shore"] * 12)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Engine]:
    engine = load("exllamav2", EngineSpec(slots=6, context_tokens=512))
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: Engine) -> Iterator[Engine]:
    with cpu.nothing_lost(loaded, ["s", *map(str, range(9))]):
        yield loaded


@pytest.fixture(scope="module")
def alone(loaded: Engine) -> dict[str, Outcome]:
    """What each question gives when nothing fails."""
    return {words: run_one(loaded, generation(words, RANKED)) for words in QUESTIONS}


class Faults:
    """Makes the library's forward pass fail. `prefill` distinguishes passes over prompts from those that decode."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        self.plan: Callable[[bool, int], Exception | None] = lambda _prefill, _count: None
        model = engine._loaded.model
        real = model.forward_chunk

        def forward_chunk(**arguments: Any) -> Any:
            self.passes += 1
            error = self.plan(bool(arguments.get("preprocess_only")), self.passes)
            if error is not None:
                raise error
            return real(**arguments)

        monkeypatch.setattr(model, "forward_chunk", forward_chunk)

    def decode_once(self, after: int, error: Exception) -> None:
        """Fail once, `after` more passes of decode."""
        left = [after]

        def plan(prefill: bool, _count: int) -> Exception | None:
            left[0] -= not prefill
            return error if not prefill and left[0] == 0 else None

        self.plan = plan


@pytest.fixture
def faults(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(engine, monkeypatch)


def all_of(driver: Driver) -> None:
    for number, words in enumerate(QUESTIONS):
        driver.admit(generation(words, RANKED, name=str(number)))


def in_decode(engine: Engine) -> Driver:
    """A driver of all questions, at least the second of which is in decode."""
    driver = Driver(engine)
    all_of(driver)
    while not driver.outcomes["1"].ids:
        driver.step(30)
    return driver


def assert_undisturbed(driver: Driver, alone: dict[str, Outcome], numbers: Iterable[int] = range(4)) -> None:
    """The questions of these numbers were answered as if nothing had failed."""
    for number in numbers:
        assert_alike(alone[QUESTIONS[number]], driver.outcomes[str(number)])


@pytest.mark.parametrize("after", [1, 2, 9])
def test_a_failed_pass_is_repeated_and_nobody_notices(
    engine: Engine, faults: Faults, alone: dict[str, Outcome], after: int
) -> None:
    driver = Driver(engine)
    all_of(driver)
    faults.decode_once(after, RuntimeError("a kernel did not like this"))
    driver.run(prefill_tokens_max=30)
    for number, words in enumerate(QUESTIONS):
        outcome = driver.outcomes[str(number)]
        assert_alike(alone[words], outcome)
        done = [event.done for event in outcome.prefilled]
        assert done == sorted(set(done)) and done[-1] == outcome.prefilled[0].total


def test_what_is_withheld_and_what_a_guide_knows_survive(engine: Engine, faults: Faults) -> None:
    settings = Sampling(temperature=0.7, seed=5, response_format=ResponseFormat(type="regex", pattern=PATTERN))
    whole = run_one(engine, generation(QUESTIONS[1], settings, max_tokens=60))
    for after in range(1, len(whole.ids), 3):
        faults.decode_once(after, RuntimeError("a kernel did not like this"))
        outcome = run_one(engine, generation(QUESTIONS[1], settings, max_tokens=60))
        assert (outcome.text, outcome.ids, outcome.finish) == (whole.text, whole.ids, "grammar")


def test_stop_strings_survive(engine: Engine, faults: Faults) -> None:
    # Counting: a replay computes in other shapes, and a story may take another turn at a near-tie.
    for after in (3, 5, 6):
        faults.decode_once(after, RuntimeError("a kernel did not like this"))
        settings = Sampling(temperature=0.0, stop=(" 6 7",))
        outcome = run_one(engine, generation("Count from 1 to 20", settings))
        assert (outcome.text, outcome.stop_sequence) == ("1 2 3 4 5", " 6 7")


def test_a_second_failure_is_the_engine_s(engine: Engine, faults: Faults) -> None:
    driver = Driver(engine)
    all_of(driver)
    faults.plan = lambda prefill, _count: None if prefill else RuntimeError("a kernel does not like this")
    with pytest.raises(RuntimeError, match="does not like"):
        driver.run()
    assert not any(outcome.broke for outcome in driver.outcomes.values())


@pytest.mark.parametrize(
    "words", ["CUDA error: an illegal memory access was encountered", "CUBLAS_STATUS_EXECUTION_FAILED"]
)
def test_what_cuda_does_not_recover_from_is_raised_at_once(engine: Engine, faults: Faults, words: str) -> None:
    driver = Driver(engine)
    all_of(driver)
    faults.decode_once(3, RuntimeError(words))
    with pytest.raises(RuntimeError, match=words[:9]):
        driver.run()


def test_a_prompt_that_fails_breaks_alone_however_often(
    engine: Engine, faults: Faults, alone: dict[str, Outcome]
) -> None:
    driver = in_decode(engine)
    faults.plan = lambda prefill, _count: MemoryError("out of memory: 12 GiB of 80 GiB are free") if prefill else None
    for name in ("7", "8"):
        bad = driver.admit(generation(Prompt(text=f"{name} {LONG}"), name=name))
        last = driver.step(64)
        assert bad.broke == "The engine failed on this job: MemoryError: out of memory: 12 GiB of 80 GiB are free."
        assert [event.lease for event in last].count(name) == 1
        # The others must be computed anew, and theirs would fail as well.
        faults.plan = lambda _prefill, _count: None
        before = {number: len(driver.outcomes[str(number)].ids) for number in range(4)}
        while any(
            len(driver.outcomes[str(number)].ids) <= count and not driver.outcomes[str(number)].ended
            for number, count in before.items()
        ):
            driver.step(64)
        faults.plan = lambda prefill, _count: (
            MemoryError("out of memory: 12 GiB of 80 GiB are free") if prefill else None
        )
    faults.plan = lambda _prefill, _count: None
    driver.run()
    assert_undisturbed(driver, alone)


def test_output_that_is_no_number_breaks_its_own_sequence(
    engine: Any, monkeypatch: pytest.MonkeyPatch, alone: dict[str, Outcome]
) -> None:
    model = engine._loaded.model
    real = model.forward_chunk

    def forward_chunk(**arguments: Any) -> Any:
        result = real(**arguments)
        if "logits" in result and len(result["logits"]) == 4:
            result["logits"][2] = float("nan")
        return result

    monkeypatch.setattr(model, "forward_chunk", forward_chunk)
    driver = Driver(engine)
    all_of(driver)
    driver.run(prefill_tokens_max=500)
    assert (
        driver.outcomes["2"].broke
        == "The engine failed on this job: ArithmeticError: the model's output is not a number."
    )
    assert_undisturbed(driver, alone, (0, 1, 3))


def test_a_sampler_that_fails_breaks_its_own_sequence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, alone: dict[str, Outcome]
) -> None:
    from worker.engines.exllamav2 import job

    real = job.choose

    def choose(logits: Any, settings: list[Sampling], uniforms: list[float]) -> Any:
        if settings[0].temperature == 0.123:
            raise RuntimeError("no candidate is left")
        return real(logits, settings, uniforms)

    monkeypatch.setattr(job, "choose", choose)
    driver = Driver(engine)
    all_of(driver)
    bad = driver.admit(generation(QUESTIONS[0], Sampling(temperature=0.123), name="8"))
    driver.run()
    assert bad.broke == "The engine failed on this job: RuntimeError: no candidate is left."
    assert_undisturbed(driver, alone)


def test_one_may_leave_right_after_a_failure(engine: Engine, faults: Faults, alone: dict[str, Outcome]) -> None:
    driver = Driver(engine)
    all_of(driver)
    faults.decode_once(4, RuntimeError("a kernel did not like this"))
    while not faults.passes or driver.outcomes["0"].ids == () or faults.passes < 12:
        driver.step(30)
    engine.leave("0")
    driver.outcomes.pop("0")
    driver.run()
    assert_undisturbed(driver, alone, (1, 2, 3))


def test_tokens_of_the_failing_step_are_reported_once(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping of the third sequence fails after the first two have their tokens."""
    from exllamav2.generator import ExLlamaV2DynamicJob

    real = ExLlamaV2DynamicJob.receive_sample
    armed = [True]

    def receive_sample(self: Any, *arguments: Any) -> Any:
        if self.sequence.lease == "2" and self.new_tokens == 3 and armed:
            armed.clear()
            raise AssertionError("the page table is wrong")
        return real(self, *arguments)

    monkeypatch.setattr(ExLlamaV2DynamicJob, "receive_sample", receive_sample)
    driver = Driver(engine)
    all_of(driver)
    reported: list[str] = []
    while armed:
        reported = [event.lease for event in driver.step(500) if isinstance(event, Delta)]
    assert reported[:2] == ["0", "1"] and "2" not in reported and "3" not in reported
    assert driver.outcomes["2"].broke == "The engine failed on this job: AssertionError: the page table is wrong."
    driver.run()
    assert driver.outcomes["3"].finish and len(driver.outcomes["3"].ids) <= 24


# ---- out of memory ---------------------------------------------------------------------------------------------------

FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.06 GiB is free."
)


def test_a_prompt_for_which_there_is_no_memory_breaks_alone_with_figures(
    engine: Engine, faults: Faults, alone: dict[str, Outcome]
) -> None:
    driver = in_decode(engine)
    armed = [True]

    def plan(prefill: bool, _count: int) -> Exception | None:
        return torch.cuda.OutOfMemoryError(FULL) if prefill and armed and armed.pop() else None

    faults.plan = plan
    bad = driver.admit(generation(Prompt(text=LONG), name="7"))
    driver.run()
    assert bad.broke == f"The engine failed on this job: OutOfMemoryError: {FULL}"
    assert_undisturbed(driver, alone)


def test_a_step_for_which_there_is_no_memory_is_tried_once_more(
    engine: Engine, faults: Faults, alone: dict[str, Outcome]
) -> None:
    driver = Driver(engine)
    all_of(driver)
    faults.decode_once(3, torch.cuda.OutOfMemoryError(FULL))
    driver.run()
    assert_undisturbed(driver, alone)
    all_of(driver)
    faults.plan = lambda prefill, _count: None if prefill else torch.cuda.OutOfMemoryError(FULL)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"2\.00 GiB"):
        driver.run()


def test_a_cache_for_which_there_is_no_memory_is_reported_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.engines.exllamav2 import model

    def full(**_arguments: Any) -> Any:
        raise torch.cuda.OutOfMemoryError(FULL)

    full.__signature__ = inspect.signature(model.CACHES["fp16"])  # type: ignore[attr-defined]
    monkeypatch.setitem(model.CACHES, "fp16", full)
    with pytest.raises(ModelError) as caught:
        load("exllamav2", EngineSpec(slots=2, options={"cache_tokens": "100000"}))
    for words in ("weights 0.01 GiB", "for 100096 tokens", "4.00 GiB of 4.00 GiB are free on GPU 0", FULL):
        assert words in caught.value.detail
