"""What is particular to the llama.cpp engine: where it runs, what it reserves, and what would abort the process."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.contracts.engines import MODEL, Driver, generation, ignore_progress, load, run_one
from tests.contracts.files import in_float32
from worker.engines import machine
from worker.engines.base import EngineSpec, Prefilled
from worker.engines.llama_cpp import engine as llama_cpp
from worker.engines.llama_cpp import library as llama_library
from worker.errors import ModelError
from worker.requests import Prompt, Sampling

REASON = llama_library.missing()
here = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def test_an_older_python_is_refused_with_the_version_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 11, 9))
    assert "Python 3.12" in (llama_library.missing() or "")
    with pytest.raises(ModelError, match=r"Python 3\.12"):
        llama_cpp.load(EngineSpec(model=str(MODEL)), ignore_progress)


def test_without_the_extra_the_command_that_installs_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(ModelError, match=r'pip install "jobwire\[gguf\]"'):
        llama_cpp.load(EngineSpec(model=str(MODEL)), ignore_progress)


def test_the_machine_is_known() -> None:
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    memory = machine.memory_bytes()
    assert memory is None or memory > 100_000_000
    assert isinstance(machine.lacks_avx2(), bool)


@here
def test_waiting_threads_do_not_spin_unless_the_user_says_so() -> None:
    script = (
        "import os\nfrom worker.engines.llama_cpp.library import library\n"
        "assert 'cyllama' not in __import__('sys').modules\nlibrary()\nprint(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        if given is not None:
            environment["OMP_WAIT_POLICY"] = given
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert run.stdout.split() == [expected]


@here
def test_no_more_slots_than_llama_cpp_has_and_than_memory_affords(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama_cpp", EngineSpec(slots=1000, context_tokens=64))
    try:
        assert engine.info.slots == engine.capacity().slots_free == llama_library.SLOTS_MAX
        assert engine.info.details["slots_asked"] == "1000"
    finally:
        engine.close()
    # 4 layers of 2 heads, 64 values each, keys and values of 16 bits: 128 KiB for 64 tokens.
    size = MODEL.stat().st_size
    monkeypatch.setattr(llama_library, "memory_bytes", lambda: size + 2 * 5 * 131_072 + 100_000)
    engine = load("llama_cpp", EngineSpec(slots=1000, context_tokens=64))
    try:
        assert engine.info.slots == 5
    finally:
        engine.close()


@here
def test_no_step_exceeds_the_batch_whatever_the_scheduler_allows() -> None:
    # llama.cpp ends the process when it does.
    engine = load("llama_cpp", EngineSpec(slots=4, context_tokens=1000))
    driver = Driver(engine)
    try:
        for number in range(4):
            driver.admit(generation(Prompt(text=f"{number} " * 450), name=str(number), max_tokens=5))
        computed = 0
        while not all(outcome.ended for outcome in driver.outcomes.values()):
            events = [event for event in driver.step(10**9) if isinstance(event, Prefilled)]
            total = sum(outcome.prefilled[-1].done for outcome in driver.outcomes.values() if outcome.prefilled)
            assert not events or total - computed <= llama_cpp.PREFILL_TOKENS_MAX
            computed = total
    finally:
        engine.close()


@here
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-300),
        Sampling(temperature=1e30),
        Sampling(repetition_penalty=1e-300),
        Sampling(repetition_penalty=10.0, frequency_penalty=2.0, presence_penalty=-2.0),
        Sampling(top_k=2**31 - 1, top_p=1e-12, min_p=1.0),
        Sampling(logit_bias=dict.fromkeys(range(1000), -100.0)),
        Sampling(seed=-1),
        Sampling(seed=2**64 - 1),
    ],
)
def test_extreme_settings_do_not_end_the_process(sampling: Sampling) -> None:
    engine = load("llama_cpp", EngineSpec(slots=1, context_tokens=64))
    try:
        assert run_one(engine, generation("Hello", sampling, max_tokens=4)).ended
    finally:
        engine.close()


@here
def test_many_copies_between_slots_keep_every_prefix_right() -> None:
    """Sequences that branch off each other again and again, against an engine that shares nothing."""
    story = "Once upon a time there was a small fox who lived in the wood. One day she went for a long walk and met "
    order = random.Random(3)
    engine = load("llama_cpp", EngineSpec(slots=6, context_tokens=256))
    driver = Driver(engine)
    wanted: dict[str, Prompt] = {}
    try:
        for number in range(40):
            if engine.capacity().slots_free:
                text = story[: order.randrange(20, len(story))] + order.choice(["the bear", "a cat", "", "her friend"])
                wanted[str(number)] = Prompt(text=text)
                driver.admit(generation(wanted[str(number)], Sampling(temperature=0.0, logprobs=3), name=str(number)))
            for _ in range(order.randrange(6)):
                driver.step(order.choice([4, 40]))
        driver.run()
    finally:
        engine.close()
    assert sum(outcome.cached for outcome in driver.outcomes.values()) > 200
    alone = load("llama_cpp", EngineSpec(slots=1, context_tokens=256))
    try:
        for name, outcome in driver.outcomes.items():
            run_one(alone, generation(Prompt(text="~~~~"), max_tokens=1))
            expected = run_one(alone, generation(wanted[name], Sampling(temperature=0.0, logprobs=3)))
            # The first token's log-probability tells if the cache held what it should.
            assert expected.cached < 3 and outcome.logprobs[0] == pytest.approx(expected.logprobs[0], abs=0.05)
    finally:
        alone.close()


@here
@pytest.mark.parametrize(("broken", "temperature"), [("every token", 0.0), ("every token", 1.0), ("one token", 1.0)])
def test_an_output_that_is_no_number_fails_the_sequence_alone(tmp_path: Path, broken: str, temperature: float) -> None:
    path = tmp_path / "nan.gguf"
    in_float32(MODEL, path)
    reader = gguf.GGUFReader(path, "r+")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    if broken == "every token":
        tensors["blk.1.ffn_norm.weight"][:] = np.nan
    else:
        ids = run_one(engine := load("llama_cpp", EngineSpec(slots=1, context_tokens=64)), generation("x")).ids
        engine.close()
        tensors["token_embd.weight"][ids[2]] = np.nan
    del reader, tensors
    engine = load("llama_cpp", EngineSpec(model=str(path), slots=2, context_tokens=64))
    try:
        outcome = run_one(engine, generation("x", Sampling(temperature=temperature, seed=1), max_tokens=40))
        assert outcome.broke is not None and "not a number" in outcome.broke
        assert len(outcome.ids) < 3
        assert engine.capacity().slots_free == 2
    finally:
        engine.close()
