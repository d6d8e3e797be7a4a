"""ExLlamaV2 0.3.2: the CUDA engine, for models in folders (EXL2, GPTQ, plain safetensors).

CUDA is not imported before `load` is called. The parts: `requirements` finds missing packages, `options` are this
engine's own settings, `memory` estimates the memory of a model, `folder` reads a model's folder, `vocabulary` its
tokenizer, `paged_attention` computes attention where there is no flash-attn, `model` makes the library's objects, `job`
is one sequence in its batch, `engine` is the port. `build` compiles the library's extension, with a command of its own.
"""

from __future__ import annotations

from pathlib import Path

from worker.engines.base import Engine, EngineSpec, OnLoad
from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.memory import estimate
from worker.engines.exllamav2.options import read_options
from worker.engines.exllamav2.requirements import free_memory, missing, open_library

__all__ = ["gpu_memory", "load", "missing"]


def load(spec: EngineSpec, on_load: OnLoad) -> Engine:
    """Load the folder `spec.model` on one or more GPUs and reserve its KV cache.

    Raises ModelError when something is missing here, for a folder that cannot be run, and without enough GPU memory.
    """
    open_library(spec)
    # Only now: importing the library needs CUDA, and seconds.
    from worker.engines.exllamav2.engine import load_engine

    return load_engine(spec, on_load)


def gpu_memory(spec: EngineSpec) -> tuple[bool | None, str, str]:
    """Return whether the folder `spec.model` fits the GPUs' memory (None: there is no GPU to ask), figures, and advice.

    Raises ModelError for a folder that is no model, and for wrong options.
    """
    assert spec.model is not None, "the bundled model is no folder"
    options = read_options(spec.options)
    memory = estimate(Folder(Path(spec.model)), options, spec.slots, spec.context_tokens, free_memory(options))
    if not memory.free_bytes:
        return None, memory.figures, ""
    figures = memory.figures
    if memory.fits and memory.cache_tokens < memory.tokens_wanted:
        figures += f"; {memory.tokens_wanted} tokens of cache could be used"
    return memory.fits, figures, memory.advice(options.cache) if not memory.fits else ""
