"""Which engine runs which model, and why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker.engines import exllamav2
from worker.engines.base import EngineSpec
from worker.engines.choose import bundled_model, choose
from worker.engines.llama_cpp import library as llama_library
from worker.errors import ModelError


@pytest.fixture(params=[None, "llama.cpp needs a CPU with AVX2"], ids=["with llama.cpp", "without"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    reason: str | None = request.param
    monkeypatch.setattr(llama_library, "missing", lambda: reason)
    return reason


def test_the_bundled_model_runs_on_numpy(missing: str | None) -> None:
    load, spec, why = choose(EngineSpec(slots=3))
    assert load.__module__ == "worker.engines.numpy_llama.engine"
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
    assert "requested" in why


@pytest.mark.parametrize(
    ("name", "what"),
    [("tensorrt", "does not exist"), ("", "does not exist")],
)
def test_an_engine_that_is_not_there_is_refused_with_those_that_are(name: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"{what}.*auto, numpy, llama_cpp, exllamav2"):
        choose(EngineSpec(engine=name))


def test_a_folder_is_for_exllamav2_if_it_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exllamav2, "missing", lambda: None)
    for asked in ("auto", "exllamav2"):
        load, spec, _ = choose(EngineSpec(engine=asked, model=str(tmp_path)))
        assert (spec.engine, spec.model) == ("exllamav2", str(tmp_path))
        assert load.__module__ == "worker.engines.exllamav2"


def test_an_engine_refuses_settings_that_it_does_not_know(missing: str | None) -> None:
    choose(EngineSpec(options={"device": "1"}))
    name = "numpy" if missing else "llama_cpp"
    with pytest.raises(ModelError, match=f"Only ExLlamaV2 has the settings cache, ngram, but the engine is {name}, be"):
        choose(EngineSpec(model="my.gguf", options={"device": "0", "ngram": "true", "cache": "q4"}))


def test_without_exllamav2_the_reason_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exllamav2, "missing", lambda: "torch is missing")
    with pytest.raises(ModelError, match=r"is a folder.*torch is missing"):
        choose(EngineSpec(model=str(tmp_path)))
    with pytest.raises(ModelError, match=r"was requested.*torch is missing"):
        choose(EngineSpec(engine="exllamav2"))


def test_choosing_exllamav2_imports_nothing_of_cuda(tmp_path: Path) -> None:
    code = (
        "import sys; from worker.engines import choose, exllamav2; from worker.engines.base import EngineSpec\n"
        "try: choose.choose(EngineSpec(model=sys.argv[1]))\n"
        "except Exception: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'exllamav2', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_choosing_comes_before_numpy() -> None:
    """The number of threads is decided when numpy is imported: a module that imports the chooser can still set it."""
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
    with pytest.raises(ModelError, match="cannot be read"):
        choose(EngineSpec(chat_template=str(file)))
