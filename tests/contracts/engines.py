"""What the contract suites need to drive an engine: which are here, generations, and what came of them."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import msgspec

import worker.bundled
from tests.engines.exllamav2 import cpu
from tests.engines.reading import prepare
from worker.engines.base import (
    Broke,
    Delta,
    Engine,
    EngineSpec,
    Generation,
    LoadProgress,
    OnLoad,
    Paused,
    Prefilled,
    Prepared,
    StepEvent,
)
from worker.engines.llama_cpp.library import missing
from worker.events import TopLogprob
from worker.requests import Message, Prompt, Sampling

EXLLAMAV2_VARIABLE = "JOBWIRE_TEST_EXLLAMAV2"
"""JSON: the model, the options and the device (cuda) of ExLlamaV2, which the suites then run on alone."""

MODEL = Path(worker.bundled.__file__).with_name("model.gguf")
GREEDY = Sampling(temperature=0.0)
SLOTS = 4
CONTEXT = 256
# Rounding depends on which rows are computed together. Where the probabilities of two tokens are this close, either may
# come out as the likeliest: stories have many such places.
TIE = 0.1


def found_for_gguf() -> list[str]:
    """The engines for GGUF files that can run in this environment."""
    return ["numpy_llama", *([] if missing() else ["llama_cpp"])]


@cache
def chosen() -> dict[str, Any]:
    """What tests on a GPU ask for, see EXLLAMAV2_VARIABLE."""
    asked: dict[str, Any] = json.loads(os.environ.get(EXLLAMAV2_VARIABLE, "{}"))
    return asked


def found() -> list[str]:
    """The engines that can run in this environment. ExLlamaV2 runs on the CPU, see tests.engines.exllamav2.cpu."""
    if chosen():
        return ["exllamav2"]
    return [*found_for_gguf(), *([] if cpu.missing() else ["exllamav2"])]


@cache
def exported() -> TemporaryDirectory[str]:
    """The bundled model as a folder, for engines that read those; removed when this process ends."""
    parent = TemporaryDirectory(prefix="jobwire-tests-")
    cpu.export(Path(parent.name) / "demo", MODEL)
    return parent


def ignore_progress(_progress: LoadProgress) -> None:
    """For tests that do not care how far loading is."""


def load(name: str, spec: EngineSpec, on_load: OnLoad = ignore_progress) -> Engine:
    """Load an engine by the name of its room, with the bundled model unless `spec` names another."""
    folders = name == "exllamav2"
    module = importlib.import_module(f"worker.engines.{name}" if folders else f"worker.engines.{name}.engine")
    if folders and chosen():
        options = {**chosen()["options"], **spec.options}
        spec = msgspec.structs.replace(spec, model=spec.model or chosen()["model"], options=options)
    if spec.model is None:
        spec = msgspec.structs.replace(spec, model=str(Path(exported().name) / "demo" if folders else MODEL))
    with cpu.gpu() if folders and chosen().get("device") != "cuda" else nullcontext():
        return cast(Callable[[EngineSpec, OnLoad], Engine], module.load)(spec, on_load)


@dataclass
class Outcome:
    """Everything that an engine reported of one sequence."""

    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[TopLogprob, ...]] = field(default_factory=list)
    finish: str | None = None
    stop_sequence: str | None = None
    broke: str | None = None
    deltas: list[Delta] = field(default_factory=list)
    prefilled: list[Prefilled] = field(default_factory=list)
    cached: int = 0
    pauses: int = 0

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.broke is not None


class Driver:
    """Admits generations, steps the engine and keeps its events, checking what must hold of every event."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outcomes: dict[str, Outcome] = {}
        self._prepared: dict[str, Prepared] = {}
        self._paused: list[Prepared] = []

    def admit(self, generation: Generation) -> Outcome:
        prepared = self._prepared[generation.lease] = prepare(self.engine, generation)
        assert self.engine.fits(prepared)
        outcome = self.outcomes[generation.lease] = Outcome()
        outcome.cached = self.engine.admit(prepared)
        assert 0 <= outcome.cached < prepared.tokens_present
        return outcome

    def step(self, prefill_tokens_max: int = 64) -> list[StepEvent]:
        while self._paused and self.engine.fits(self._paused[0]):
            self.engine.admit(self._paused.pop(0))
        events = self.engine.step(prefill_tokens_max)
        for event in events:
            outcome = self.outcomes[event.lease]
            assert not outcome.ended, "an event after the end"
            if isinstance(event, Prefilled):
                outcome.prefilled.append(event)
            elif isinstance(event, Broke):
                outcome.broke = event.error.detail
            elif isinstance(event, Paused):
                outcome.pauses += 1
                outcome.prefilled.clear()
                again = msgspec.structs.replace(self._prepared[event.lease], produced=event.produced)
                self._paused.append(again)
            else:
                self._add(outcome, event)
        return events

    def _add(self, outcome: Outcome, delta: Delta) -> None:
        assert delta.ids or delta.text or delta.finish, "a delta without content"
        outcome.deltas.append(delta)
        outcome.text += delta.text
        outcome.ids += delta.ids
        outcome.finish = delta.finish
        outcome.stop_sequence = delta.stop_sequence
        if delta.logprobs is not None:
            assert len(delta.logprobs) == len(delta.ids)
            outcome.logprobs += delta.logprobs
        if delta.top_logprobs is not None:
            assert len(delta.top_logprobs) == len(delta.ids)
            outcome.top += delta.top_logprobs

    def run(
        self, generations: Iterable[Generation] = (), prefill_tokens_max: int = 64, steps_max: int = 3 * CONTEXT
    ) -> dict[str, Outcome]:
        """Admit these and step until every sequence has ended."""
        for generation in generations:
            self.admit(generation)
        for _ in range(steps_max):
            if all(outcome.ended for outcome in self.outcomes.values()):
                return self.outcomes
            self.step(prefill_tokens_max)
        raise AssertionError("sequences that never end")


def chat(words: str, *, system: str | None = None) -> Prompt:
    """A conversation of one question."""
    first = (Message("system", system),) if system is not None else ()
    return Prompt(messages=(*first, Message("user", words)))


def generation(
    prompt: str | Prompt,
    sampling: Sampling = GREEDY,
    *,
    name: str = "s",
    max_tokens: int = 24,
    generated: tuple[int, ...] = (),
) -> Generation:
    """A question for the model, or a prompt as it is."""
    whole = chat(prompt) if isinstance(prompt, str) else prompt
    return Generation(lease=name, prompt=whole, sampling=sampling, max_tokens=max_tokens, generated=generated)


def run_one(engine: Engine, wanted: Generation, prefill_tokens_max: int = 64) -> Outcome:
    """Run one sequence alone, to its end."""
    return Driver(engine).run([wanted], prefill_tokens_max)[wanted.lease]


def assert_alike(first: Outcome, other: Outcome) -> None:
    """Two greedy outcomes are equal, up to a token where rounding decides; `first` needs its top log-probabilities."""
    for position, (one, two) in enumerate(zip(first.ids, other.ids, strict=False)):
        if one != two:
            top = {each.id: math.exp(each.logprob) for each in first.top[position]}
            assert two in top and abs(top[one] - top[two]) < TIE, (position, first.text, other.text)
            return
    assert (first.text, first.finish) == (other.text, other.finish)
