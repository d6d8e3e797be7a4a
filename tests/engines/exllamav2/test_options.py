"""Options of the ExLlamaV2 engine, and what it needs of a machine. Needs none of CUDA."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from worker.config import Settings
from worker.config.settings import EXLLAMAV2_ALONE
from worker.engines.base import EngineSpec
from worker.engines.exllamav2 import requirements
from worker.engines.exllamav2.options import Options, read_options
from worker.errors import ModelError
from worker.processes.messages import Open


def test_defaults() -> None:
    options = read_options({"device": "0"})
    assert options == Options() and options.ahead == 0 and options.split_gib is None and options.adapters == []


def test_every_setting_of_this_engine_alone_is_an_option_with_the_same_default() -> None:
    for name in EXLLAMAV2_ALONE:
        default = getattr(Settings(), name)
        assert getattr(Options(), name) == ("" if default in (None, ()) else default)
    given = Settings(engine="exllamav2", cache="q6", slice_tokens=0, ngram=True, loras=("one=0.5", "two"), device=3)
    options = read_options(Open.of(given).spec.options)
    assert options == Options(device=3, cache="q6", slice_tokens=0, ngram=True, loras="one=0.5,two")


def test_values_become_typed() -> None:
    given = {"cache": "q4", "cache_tokens": "4096", "gpu_split": "20,24.5", "draft_model": "small", "draft_tokens": "3"}
    options = read_options({**given, "loras": "one=0.5,two"})
    assert (options.cache, options.cache_tokens, options.split_gib) == ("q4", 4096, [20.0, 24.5])
    assert (options.speculates, options.ahead) == (True, 3)
    assert options.adapters == [(Path("one"), 0.5), (Path("two"), 1.0)]
    assert read_options({"ngram": "true"}).ahead == 4
    assert read_options({"gpu_split": "auto"}).split_gib is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cahce": "q4"}, "cahce"),
        ({"cache": "q5"}, "q5"),
        ({"cache_tokens": "many"}, "cache_tokens"),
        ({"cache_tokens": "-1"}, "cache_tokens"),
        ({"chunk_tokens": "300"}, "multiple of 256"),
        ({"chunk_tokens": "0"}, "multiple of 256"),
        ({"gpu_split": "all"}, "gpu_split is 'all'"),
        ({"loras": "one=big"}, "scale 'big' of one"),
        ({"ngram": "true", "draft_model": "small"}, "not with both"),
        ({"draft_tokens": "0"}, "1 to 16"),
    ],
)
def test_what_is_wrong_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_options(given)


# ---- what is needed --------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Packages that seem to be there: all, at first, and the extension built."""
    names = {*requirements.PACKAGES, requirements.EXTENSION}
    spec = importlib.util.find_spec("worker")
    real: Callable[[str], object] = importlib.util.find_spec
    asked = {*names, "flash_attn"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: _of(name, names, asked, spec, real))
    monkeypatch.setattr(metadata, "version", lambda _name: "2.13.0+cu130")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delitem(sys.modules, requirements.EXTENSION, raising=False)
    return names


def _of(name: str, names: set[str], asked: set[str], spec: object, real: Callable[[str], object]) -> object:
    if name not in asked:
        return real(name)
    return spec if name in names else None


def test_nothing_is_missing(installed: set[str]) -> None:
    assert requirements.missing() is None


@pytest.mark.parametrize("name", requirements.PACKAGES)
def test_a_package_is_missing(installed: set[str], name: str) -> None:
    installed.discard(name)
    reason = requirements.missing()
    assert reason is not None and name in reason and 'pip install "jobwire[cuda]"' in reason
    with pytest.raises(ModelError, match=name):
        requirements.open_library(EngineSpec())


def test_torch_is_built_without_cuda(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: "2.13.0+cpu")
    assert "torch 2.13.0+cpu is built without CUDA" in (requirements.missing() or "")


def test_the_extension_is_built_once_by_a_command_for_these_versions(
    installed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.discard(requirements.EXTENSION)
    assert "jobwire engine build" in (requirements.missing() or "")
    with pytest.raises(ModelError, match="jobwire engine build"):
        requirements.open_library(EngineSpec())
    file = requirements.extension(os.environ)
    assert tmp_path in file.parents
    file.parent.mkdir(parents=True)
    file.with_suffix(".o").touch()
    assert requirements.missing() is not None
    file.touch()
    assert requirements.missing() is None
    monkeypatch.setattr(metadata, "version", lambda _name: "2.14.0+cu130")
    assert "jobwire engine build" in (requirements.missing() or "")


def test_an_extension_that_cannot_be_loaded_says_what_to_do(installed: set[str]) -> None:
    installed.discard(requirements.EXTENSION)
    file = requirements.extension(os.environ)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"compiled for another machine")
    with pytest.raises(
        ModelError, match=r"exllamav2_ext\.so cannot be loaded: .* Remove it and run `jobwire engine build`"
    ):
        requirements.load_extension(os.environ)
    assert requirements.EXTENSION not in sys.modules


def test_gpus() -> None:
    assert Options().gpus(4) == [0] and Options().gpus(4, 2) == [2]
    assert Options(gpu_split="auto").gpus(3) == [0, 1, 2] == Options(tensor_parallel=True).gpus(3)
    assert Options(gpu_split="20,24").gpus(4) == [0, 1] and Options(gpu_split="20,24").gpus(1) == [0]


@pytest.mark.parametrize(
    ("said", "has"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True),
        ("__version__ = '2.9.0'\ncuda = None\n", False),
        ("__version__ = '2.9.0'\n", True),
    ],
)
def test_torch_says_itself_if_it_has_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, has: bool
) -> None:
    (tmp_path / "version.py").write_text(said)
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    assert requirements._torch_has_cuda() == has


def test_a_flash_attn_that_does_not_work_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed")
    assert requirements.unusable_flash_attn() is None
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("flash_attn", "flash_attn_2_cuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").touch()
    (tmp_path / "flash_attn_2_cuda.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    assert "cannot be imported (undefined symbol: _ZN3c10)" in (requirements.unusable_flash_attn() or "")
    # Another package of that name: it has no version.
    (tmp_path / "flash_attn_2_cuda.py").write_text("")
    importlib.invalidate_caches()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "is not flash-attn 2" in (requirements.unusable_flash_attn() or "")
    for name in ("flash_attn", "flash_attn_2_cuda"):
        sys.modules.pop(name, None)
