"""What a hand does with works that cost too much: each limit, on the real readers of real models.

numpy's is that of the bundled model, llama.cpp's that of SmolLM2: once as it is, and once with a way to split words
that overflows the stack on a long one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.engines import found_for_gguf
from tests.processes.preparers import ByHand, preparing
from tests.support.models import SMOLLM2, path_of, with_pre_tokenizer
from worker.engines.base import EngineSpec, Generation
from worker.engines.llama_cpp import library
from worker.processes.hand import EXIT_GROWN
from worker.processes.messages import FormPassed, FromHand, HandLimits, Made, Refuse
from worker.requests import Message, Prompt, ResponseFormat, Sampling
from worker.scheduler.works import Work

llama_cpp = pytest.mark.skipif(library.missing() is not None, reason=library.missing() or "")

TEMPLATE = """{% for message in messages %}{{ message.content }}{% endfor %}
{%- if messages[-1].content == 'hoard' %}{{ 'x' * (messages | length * 1200000000) }}{% endif %}
{%- if messages[-1].content == 'loop' %}
{%- for a in range(90000) %}{% for b in range(90000) %}{% set c = a * b %}{% endfor %}{% endfor %}{% endif %}"""

MULTIPLE = ResponseFormat("json_schema", schema={"type": "integer", "multipleOf": 999_983})
PATTERNS = ResponseFormat(
    "json_schema", schema={"type": "string", "allOf": [{"pattern": f".*a.{{{i}}}b.*"} for i in range(37)]}
)
JOINED = ResponseFormat("grammar", grammar="start: T\nT: " + " & ".join(f"/.*a.{{{i}}}b.*/" for i in range(27)))
REPEATED = ResponseFormat("regex", pattern="a{1000000}")
COSTLY_MASK = ResponseFormat("regex", pattern="a{100000}")
INNOCENT = ResponseFormat("json_schema", schema={"type": "object", "properties": {"a": {"type": "integer"}}})
FORMS = {"multiple": MULTIPLE, "patterns": PATTERNS, "joined": JOINED, "repeated": REPEATED}

PATIENT = HandLimits(form_compile_ms_max=60_000, form_mask_ms_max=60_000, prepare_timeout_s=60.0)
"""Leaves the limit of memory alone to act."""


def work(form: ResponseFormat | None = None, text: str = "Hello", *, chat: bool = False) -> Work:
    prompt = Prompt(messages=(Message("user", text),)) if chat else Prompt(text=text)
    sampling = Sampling() if form is None else Sampling(response_format=form)
    return Work(generation=Generation(lease="a", prompt=prompt, sampling=sampling, max_tokens=5))


@pytest.fixture(scope="module", params=found_for_gguf())
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    """A model of each engine, with a template of ours."""
    path: Path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(TEMPLATE)
    if request.param == "llama_cpp":
        return EngineSpec(engine="llama_cpp", model=str(path_of(SMOLLM2)), chat_template=str(path))
    return EngineSpec(engine="numpy", chat_template=str(path))


@pytest.fixture(scope="module")
def usual(spec: EngineSpec) -> Iterator[ByHand]:
    """A preparer with the limits that users have, but three seconds in place of ten."""
    with preparing(spec=spec, limits=HandLimits(prepare_timeout_s=3.0)) as one:
        yield one.until_hands()


@pytest.fixture(scope="module")
def patient(spec: EngineSpec) -> Iterator[ByHand]:
    with preparing(spec=spec, limits=PATIENT) as one:
        yield one.until_hands()


def ending(one: ByHand, hostile: Work) -> tuple[list[FromHand], int, float]:
    """Have a form tried; return the answers, the signal that ended the hand (0 for none) and the seconds it took.

    A hand is there for the next work in any case.
    """
    begun_s = time.monotonic()
    answers = one.ask(hostile, try_form=True)
    spent_s = time.monotonic() - begun_s
    number = 0 if answers and not isinstance(answers[-1], FormPassed) else one.death().signal
    later = one.ask(work())
    if not later:
        # It had grown by the hostile work, and left by itself; the next one is there.
        last = one.death()
        assert (last.signal, last.exit_code) == (0, EXIT_GROWN)
        later = one.ask(work())
    assert isinstance(later[-1], Made)
    return answers, number, spent_s


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_compiles_for_long_is_refused_or_ends_its_hand_in_time(usual: ByHand, name: str) -> None:
    answers, number, _ = ending(usual, work(FORMS[name]))
    if number:
        # Wall time ends it where the machine is busy, memory where it is fast.
        assert number in (signal.SIGPROF, signal.SIGALRM, signal.SIGABRT)
        assert answers == []
    else:
        (refuse,) = answers
        assert isinstance(refuse, Refuse)
        assert (refuse.error.code, refuse.culprit) == ("invalid_params", "form")


@pytest.mark.parametrize("name", ["multiple", "patterns", "joined"])
def test_a_form_that_needs_more_memory_ends_its_hand(patient: ByHand, name: str) -> None:
    _, number, _ = ending(patient, work(FORMS[name]))
    assert number == signal.SIGABRT


def test_a_form_whose_mask_is_costly_is_refused(spec: EngineSpec) -> None:
    with preparing(spec=spec, limits=HandLimits(form_compile_ms_max=20_000, form_mask_ms_max=1)) as one:
        (refuse,), number, _ = ending(one.until_hands(), work(COSTLY_MASK))
    assert number == 0
    assert isinstance(refuse, Refuse)
    assert refuse.error.errors[0].pointer.startswith("/response_format")
    assert refuse.culprit == "form"


def test_an_innocent_form_passes_and_its_passing_is_reported_first(usual: ByHand) -> None:
    (passed, made), number, _ = ending(usual, work(INNOCENT))
    assert number == 0
    assert isinstance(passed, FormPassed)
    assert isinstance(made, Made)


def test_a_wrong_form_is_refused_in_words_and_was_no_effort(usual: ByHand) -> None:
    (refuse,), number, _ = ending(usual, work(ResponseFormat("regex", pattern="(")))
    assert number == 0
    assert isinstance(refuse, Refuse)
    assert (refuse.error.code, refuse.error.errors[0].pointer) == ("invalid_params", "/response_format/pattern")


def test_a_template_that_makes_too_much_text_is_refused(usual: ByHand) -> None:
    (refuse,), number, spent_s = ending(usual, work(text="hoard", chat=True))
    assert number == 0
    assert isinstance(refuse, Refuse)
    assert (refuse.error.code, refuse.error.status) == ("invalid_params", 422)
    assert spent_s < 1


def test_a_template_that_does_not_end_is_ended_by_the_timer(usual: ByHand) -> None:
    answers, number, spent_s = ending(usual, work(text="loop", chat=True))
    assert (answers, number) == ([], signal.SIGALRM)
    assert 2.9 < spent_s < 9


HUGE = {
    "a long word": "a" * 30_000,
    "300 kB of words": "some words and more " * 15_000,
    "250 kB of letters": "".join(chr(97 + (i * i * 7919 + i) % 26) for i in range(250_000)),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_prompt_beyond_the_context_is_refused_in_words(usual: ByHand, name: str) -> None:
    (refuse,), number, spent_s = ending(usual, work(text=HUGE[name]))
    assert number == 0
    assert isinstance(refuse, Refuse)
    assert refuse.error.errors[0].pointer == "/prompt"
    # Those that cannot fit by their size are not tokenized at all; for numpy's model all are.
    assert spent_s < 3


@llama_cpp
def test_a_word_that_makes_the_tokenizer_overflow_its_stack_ends_the_hand_alone(tmp_path: Path) -> None:
    model = with_pre_tokenizer(path_of(SMOLLM2), "gpt-4o", tmp_path / "model.gguf")
    with preparing(spec=EngineSpec(engine="llama_cpp", model=str(model))) as one:
        one.until_hands()
        _, other = one.hands[1]
        answers, number, spent_s = ending(one, work(text=HUGE["a long word"]))
        assert (answers, number) == ([], signal.SIGSEGV)
        assert spent_s < 5
        assert one.hands[1][1].pid == other.pid
