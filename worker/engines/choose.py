"""Chooses the engine for a model, with the reason. Engines are imported only when they are chosen."""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, cast

import msgspec

from worker.engines.base import Engine, EngineSpec, OnLoad, Reader
from worker.errors import ModelError

Load: TypeAlias = Callable[[EngineSpec, OnLoad], Engine]
Read: TypeAlias = Callable[[EngineSpec], Reader]

MODULES = {
    "numpy": ("worker.engines.numpy_llama.engine", "worker.engines.numpy_llama.reader"),
    "llama_cpp": ("worker.engines.llama_cpp.engine", "worker.engines.llama_cpp.reader"),
    "exllamav2": ("worker.engines.exllamav2", "worker.engines.exllamav2.reader"),
}
"""Engines by their names for `--engine`: a module with a function `load`, and one with a function `read`."""


def bundled_model() -> str:
    """Return the path of the model that comes with Jobwire."""
    return str(importlib.resources.files("worker.bundled") / "model.gguf")


def choose(spec: EngineSpec) -> tuple[Load, EngineSpec, str]:
    """Return the function that loads a model, the exact spec for it, and the reason for this engine.

    The spec returned names the model's path, and has the text of the chat template in place of its file. Raises
    ModelError for an engine that does not exist, a model that no engine can run here, a template that cannot be read,
    or settings that the engine does not know.
    """
    (module, _), resolved, why = _resolve(spec)
    return cast(Load, importlib.import_module(module).load), resolved, why


def choose_reader(spec: EngineSpec) -> tuple[Read, EngineSpec, str]:
    """Return the function that reads a model's vocabulary and template alone, and the rest as `choose` does."""
    (_, module), resolved, why = _resolve(spec)
    return cast(Read, importlib.import_module(module).read), resolved, why


def _resolve(spec: EngineSpec) -> tuple[tuple[str, str], EngineSpec, str]:
    """Return the modules of the engine for a model, the exact spec, and the reason."""
    template = _read_template(spec.chat_template) if spec.chat_template else None
    resolved = msgspec.structs.replace(spec, model=spec.model or bundled_model(), chat_template=template)
    name, why = _pick(spec)
    modules = MODULES.get(name)
    if modules is None:
        raise ModelError(f"The engine {name!r} does not exist. There are: auto, {', '.join(MODULES)}.")
    if name != "exllamav2" and (foreign := sorted(spec.options.keys() - {"device"})):
        what, them = ("setting", "it") if len(foreign) == 1 else ("settings", "them")
        raise ModelError(
            f"Only ExLlamaV2 has the {what} {', '.join(foreign)}, but the engine is {name}, because {why}. "
            f"Leave {them} out."
        )
    return modules, msgspec.structs.replace(resolved, engine=name), why


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The chat template {path} cannot be read: {error}.") from error


def _pick(spec: EngineSpec) -> tuple[str, str]:
    if spec.engine == "exllamav2":
        _require_exllamav2("The engine exllamav2 was requested")
    if spec.engine != "auto":
        return spec.engine, "it was requested"
    if spec.model is None:
        return "numpy", "the bundled model runs everywhere on numpy"
    if Path(spec.model).is_dir():
        _require_exllamav2(f"{spec.model} is a folder, as models for ExLlamaV2 are")
        return "exllamav2", "ExLlamaV2 is installed and runs models in folders"
    # Imported here because it needs numpy, which reads its number of threads when it is imported first.
    from worker.engines.llama_cpp.library import missing

    reason = missing()
    if reason is None:
        return "llama_cpp", "llama.cpp is installed and fastest for GGUF files"
    return "numpy", reason


def _require_exllamav2(why: str) -> None:
    """Raise ModelError if that engine cannot run here; `why` begins the sentence. Imports no CUDA."""
    from worker.engines import exllamav2

    reason = exllamav2.missing()
    if reason is not None:
        raise ModelError(f"{why}, but it cannot run here: {reason}. GGUF files run on the other engines.")
