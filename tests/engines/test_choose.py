"""Which engine runs which model, and why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker.engines import llama_library
from worker.engines.base import EngineSpec
from worker.engines.choose import bundled_model, choose
from worker.errors import ModelError


@pytest.fixture(params=[None, "llama.cpp needs a CPU with AVX2"], ids=["with llama.cpp", "without"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    reason: str | None = request.param
    monkeypatch.setattr(llama_library, "missing", lambda: reason)
    return reason


def test_the_bundled_model_runs_on_numpy(missing: str | None) -> None:
    load, spec, why = choose(EngineSpec(slots=3))
    assert load.__module__ == "worker.engines.numpy_llama"
    assert (spec.engine, spec.model, spec.slots) == ("numpy", bundled_model(), 3)
    assert "bundled model" in why
    assert Path(bundled_model()).is_file()


def test_another_gguf_file_runs_on_llama_cpp_if_it_can(missing: str | None) -> None:
    load, spec, why = choose(EngineSpec(model="my.gguf"))
    name = "llama_cpp" if missing is None else "numpy"
    assert (spec.engine, spec.model) == (name, "my.gguf")
    assert name in load.__module__
    assert why == (missing or "llama.cpp is installed and fastest for GGUF files")


@pytest.mark.parametrize("name", ["numpy", "llama_cpp"])
@pytest.mark.parametrize("model", [None, "my.gguf"])
def test_an_engine_that_was_asked_for_is_taken(missing: str | None, name: str, model: str | None) -> None:
    load, spec, why = choose(EngineSpec(engine=name, model=model))
    assert (spec.engine, spec.model) == (name, model or bundled_model())
    assert name in load.__module__
    assert "asked for" in why


@pytest.mark.parametrize(
    ("name", "what"),
    [("exllamav2", "not part of this version"), ("tensorrt", "does not exist"), ("", "does not exist")],
)
def test_an_engine_that_is_not_there_is_refused_with_those_that_are(name: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"{what}.*auto, numpy, llama_cpp"):
        choose(EngineSpec(engine=name))


def test_a_folder_is_for_an_engine_of_a_later_version(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        choose(EngineSpec(model=str(tmp_path)))


def test_choosing_comes_before_numpy() -> None:
    """The number of threads is decided when numpy is imported: whoever imports the chooser can still set it."""
    code = "import sys, worker.engines.choose; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_engine_gets_the_text_of_the_chat_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }} ünd", encoding="utf-8")
    _, spec, _ = choose(EngineSpec(chat_template=str(file)))
    assert spec.chat_template == "{{ messages[0].content }} ünd"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_chat_template_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match="mine.jinja cannot be read"):
        choose(EngineSpec(chat_template=str(file)))
