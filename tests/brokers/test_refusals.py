from __future__ import annotations

import signal

import pytest

from worker.brokers import refusals
from worker.brokers.refusals import REMEMBERED_S, Refusals, blame, form_digest, prompt_digest
from worker.errors import InvalidParams, Problem
from worker.processes.messages import HandLimits
from worker.requests import Message, Prompt, ResponseFormat

TEXT, FORM = ResponseFormat(), ResponseFormat("regex", pattern="a{1000000}")
PROMPT, OTHER = Prompt(text="Hello"), Prompt(messages=(Message("user", "Hello"),))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def problem(detail: str = "no") -> Problem:
    return InvalidParams(detail).problem()


def test_a_form_is_refused_with_any_prompt_and_a_prompt_with_any_form() -> None:
    memory = Refusals(Clock())
    assert memory.find(PROMPT, FORM) is None
    memory.remember(form_digest(FORM), problem("form"))
    memory.remember(prompt_digest(PROMPT), problem("prompt"))
    assert memory.find(OTHER, FORM) == problem("form")
    assert memory.find(PROMPT, TEXT) == problem("prompt")
    assert memory.find(OTHER, TEXT) is None


def test_after_a_minute_it_is_forgotten() -> None:
    clock = Clock()
    memory = Refusals(clock)
    memory.remember(form_digest(FORM), problem())
    clock.now_s += REMEMBERED_S - 1
    assert memory.find(OTHER, FORM) == problem()
    clock.now_s += 1
    assert memory.find(OTHER, FORM) is None
    assert not memory._refused


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "REMEMBERED_MAX", 3)
    monkeypatch.setattr(refusals, "HARMLESS_MAX", 3)
    memory = Refusals(Clock())
    for number in range(5):
        memory.remember(bytes([number]), problem())
        memory.trust(bytes([100 + number]))
    assert list(memory._refused) == [b"\2", b"\3", b"\4"]
    assert [memory.harmless(bytes([100 + number])) for number in range(5)] == [False, False, True, True, True]


def test_a_form_that_is_refused_later_is_no_longer_harmless() -> None:
    memory = Refusals(Clock())
    memory.trust(form_digest(FORM))
    assert memory.harmless(form_digest(FORM))
    memory.remember(form_digest(FORM), problem())
    assert not memory.harmless(form_digest(FORM))


@pytest.mark.parametrize(
    ("number", "exit_code", "short", "words"),
    [
        (signal.SIGALRM, 0, False, "took longer to read than prepare_timeout_s (10 s)"),
        (signal.SIGPROF, 0, False, "form_compile_ms_max (200 ms)"),
        (signal.SIGABRT, 0, False, "prepare_memory_bytes_max (268435456 bytes)"),
        (signal.SIGSEGV, 0, False, "ended the process that read it (signal 11)"),
        (signal.SIGKILL, 0, False, "ended the process that read it twice (signal 9)"),
        (signal.SIGKILL, 0, True, "needs more memory to be read than this machine has"),
        (0, 1, False, "ended the process that read it (exit code 1)"),
    ],
)
def test_the_limit_is_named_in_words_and_figures(number: int, exit_code: int, short: bool, words: str) -> None:
    error = blame("/prompt", number, exit_code, HandLimits(), memory_short=short)
    assert error.detail.startswith("The prompt ")
    assert words in error.detail
    assert error.errors[0].pointer == "/prompt"
    assert blame("/response_format", 0, 1, HandLimits(), memory_short=False).detail.startswith("The response format ")
