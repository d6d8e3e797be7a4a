"""Readers of model files: what an engine reads of a prompt, without the engine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from tests.contracts.engines import CONTEXT, MODEL, chat, found, load
from tests.contracts.engines import exported as exported_model
from worker.engines.base import EngineSpec, Generation
from worker.engines.choose import choose_reader
from worker.requests import Prompt, ResponseFormat, Sampling

NAMES = {"numpy_llama": "numpy", "llama_cpp": "llama_cpp", "exllamav2": "exllamav2"}
JSON = ResponseFormat(type="json_object")


def spec_of(room: str) -> EngineSpec:
    model = Path(exported_model().name) / "demo" if room == "exllamav2" else MODEL
    return EngineSpec(engine=NAMES[room], model=str(model), slots=2, context_tokens=CONTEXT)


def generation(prompt: Prompt) -> Generation:
    return Generation(lease="g", prompt=prompt, sampling=Sampling(response_format=JSON), max_tokens=8)


@pytest.mark.parametrize("room", found())
def test_a_reader_reads_what_its_engine_reads(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engines.exllamav2.missing", lambda: None)
    read, spec, why = choose_reader(spec_of(room))
    assert spec.engine == NAMES[room] and "requested" in why
    reader, engine = read(spec), load(room, spec)
    try:
        for prompt in (chat("Who are you?", system="Be kind."), Prompt(text="Once upon a time")):
            made = reader.prepare(generation(prompt), engine.info.bounds)
            assert made == engine.reader.prepare(generation(prompt), engine.info.bounds)
            assert made.packed_prompt == msgspec.msgpack.decode(msgspec.msgpack.encode(made.packed_prompt))
        reader.try_template()
    finally:
        engine.close()


def test_a_process_that_has_read_a_model_can_be_forked() -> None:
    read, spec, _ = choose_reader(EngineSpec())
    before = set(threading.enumerate())
    reader = read(spec)
    # Those of earlier tests may end meanwhile.
    assert set(threading.enumerate()) <= before
    pid = os.fork()
    if not pid:
        reader.try_form(JSON, 10_000, 10_000)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif("exllamav2" not in found(), reason="needs the library tokenizers")
def test_the_reader_of_a_folder_imports_nothing_of_cuda() -> None:
    code = (
        "import sys; from worker.engines.exllamav2.reader import read; from worker.engines.base import EngineSpec\n"
        "read(EngineSpec(model=sys.argv[1])).try_template()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'exllamav2')))"
    )
    folder = Path(exported_model().name) / "demo"
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0
