"""ExLlamaV2 on the CPU: the library's real Python code, over a stand-in for its compiled extension.

`install` must run before the first `import exllamav2`. What is replaced is what needs a GPU: the functions of the
extension that a model in float16 and quantised caches need, written anew in torch, and the names that put tensors on a
device. Config, weights, cache, pages, jobs, batching and sampling settings are the library's own code.

Not covered: quantised weights, the codes of quantised caches, tensor parallelism, CUDA itself.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

from worker.engines.base import Engine

MEMORY_BYTES = 4 << 30
PACKAGES = ("torch", "exllamav2", "tokenizers", "safetensors", "rich", "PIL")


def missing() -> str | None:
    """Say why ExLlamaV2 cannot run here on the CPU, None if it can."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@cache
def install() -> None:
    """Make `import exllamav2` work without a GPU, for the rest of this process."""
    from tests.engines.exllamav2 import extension

    module = types.ModuleType("exllamav2_ext")
    # Whoever looks for the extension finds a module with a spec.
    module.__spec__ = importlib.machinery.ModuleSpec("exllamav2_ext", None)
    for function in extension.FUNCTIONS:
        setattr(module, function.__name__, function)
    sys.modules["exllamav2_ext"] = module
    with warnings.catch_warnings(), patch("torch.version.cuda", "0.0"):
        warnings.simplefilter("ignore")
        importlib.import_module("exllamav2")
        importlib.import_module("exllamav2.generator")
    device = importlib.import_module("exllamav2.device")
    device.global_streams[0] = None
    for name, part in list(sys.modules.items()):
        if name.startswith("exllamav2."):
            for attribute, replacement in _ON_CPU.items():
                if hasattr(part, attribute):
                    setattr(part, attribute, replacement)


@contextmanager
def gpu(memory_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """A machine whose one "GPU" is the CPU, while an engine is loaded: what the engine asks torch about it."""
    install()
    answers: dict[str, Callable[..., object]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda _device=0: "CPU (stand-in)",
        "get_device_capability": lambda _device=0: (0, 0),
        "synchronize": lambda _device=None: None,
        "mem_get_info": lambda _device=0: (memory_bytes, memory_bytes),
    }
    with ExitStack() as stack:
        stack.enter_context(patch("torch.version.cuda", "0.0"))
        for name, answer in answers.items():
            stack.enter_context(patch(f"torch.cuda.{name}", answer))
        yield


def _same(tensor: object, device: object = None, non_blocking: bool = False) -> object:
    return tensor


def _cpu(_index: int) -> str:
    return "cpu"


def _nothing(*_arguments: object) -> None:
    return None


_ON_CPU: dict[str, Callable[..., object]] = {
    "safe_move_tensor": _same,
    "_torch_device": _cpu,
    "set_device_streams": _nothing,
    "cuda_sync_active": _nothing,
}


def export(folder: Path, gguf: Path) -> Path:
    """Write a GGUF model of ours as the folder that ExLlamaV2 reads, once; safe beside other processes."""
    from worker.bundled.export import write_folder
    from worker.bundled.weights import from_gguf

    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.{id(folder)}")
        write_folder(from_gguf(gguf), draft)
        draft.rename(folder)
    return folder


@contextmanager
def nothing_lost(engine: Engine, sequence_ids: Iterable[str]) -> Iterator[Engine]:
    """Lend an engine for a test, and see that all its room is free again once these sequences have left."""
    empty = engine.capacity()
    yield engine
    for lease in sequence_ids:
        engine.leave(lease)
    assert engine.capacity() == empty, "pages or slots were lost"
