"""ExLlamaV2 0.3.2: the CUDA engine, for models in folders (EXL2, GPTQ, plain safetensors).

Nothing of CUDA is imported before `load` is called. The parts: `requirements` says what is missing, `options` what can
be set, `folder` reads a model's folder, `vocabulary` its tokenizer, `paged_attention` computes attention where there is
no flash-attn, `model` makes the library's objects, `job` is one sequence in its batch, `engine` is the port. `build`
compiles the library's extension, which is a command of its own.
"""

from __future__ import annotations

from worker.engines.base import Engine, EngineSpec, OnLoad
from worker.engines.exllamav2.requirements import missing, open_library

__all__ = ["load", "missing"]


def load(spec: EngineSpec, on_load: OnLoad) -> Engine:
    """Load the folder `spec.model` on one or more GPUs and reserve its KV cache.

    Raises ModelError when something is missing here, for a folder that cannot be run, and without enough GPU memory.
    """
    open_library(spec)
    # Only now: importing the library needs CUDA, and takes seconds.
    from worker.engines.exllamav2.engine import load_engine

    return load_engine(spec, on_load)
