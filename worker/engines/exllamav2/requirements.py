"""ExLlamaV2's requirements on this machine, and the one place where it is made ready to be imported."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType

from worker.engines.base import EngineSpec
from worker.engines.exllamav2.options import Options
from worker.errors import ModelError

EXTRA = 'pip install "jobwire[cuda]"'
PACKAGES = ("torch", "exllamav2", "tokenizers", "safetensors", "rich", "PIL")
EXTENSION = "exllamav2_ext"
UNBUILT = "ExLlamaV2's CUDA extension is not built yet: run `jobwire engine build` once, it takes minutes"


def missing() -> str | None:
    """Return why this engine cannot run here, None if it can. Imports nothing of it."""
    return lacking() or _unbuilt()


def lacking() -> str | None:
    """Return which package is missing to build or run this engine, None if all are there."""
    absent = _absent()
    if absent is not None:
        return absent
    if not _torch_has_cuda():
        version = metadata.version("torch")
        return f"torch {version} is built without CUDA: install a CUDA build of torch 2.12 or newer"
    return None


def extension(environ: Mapping[str, str]) -> Path:
    """Return the file that `jobwire engine build` makes for the installed versions, whether it exists or not."""
    own = environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(own) if own else Path.home() / ".cache" / "torch_extensions"
    versions = "-".join(f"{name}-{metadata.version(name)}" for name in ("exllamav2", "torch"))
    return root / f"{versions}-{sys.implementation.cache_tag}" / EXTENSION / f"{EXTENSION}.so"


def open_library(spec: EngineSpec) -> None:
    """Make sure that `import exllamav2` will work, and quickly. Raises ModelError that names the missing part."""
    reason = _absent() or _unbuilt()
    if reason is not None:
        raise ModelError(f"{reason}.")
    _environment(spec)
    import torch

    if torch.version.cuda is None:
        raise ModelError(f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch.")
    if not torch.cuda.is_available():
        raise ModelError(f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU: is the driver loaded?")
    load_extension(os.environ)


def built(environ: Mapping[str, str]) -> bool:
    """Return whether the extension is there. Importing ExLlamaV2 would compile it: a command of its own does that."""
    return _packaged() or extension(environ).is_file()


def load_extension(environ: Mapping[str, str]) -> None:
    """Load the extension that was built, after torch. Raises ModelError if that fails.

    ExLlamaV2 uses an extension that is loaded already. Otherwise it would ask torch, which compiles anew when the GPUs
    are others than at the build, needs compilers even to check, and waits for ever for a build that was killed.
    """
    if not _packaged():
        sys.modules[EXTENSION] = extension_module(extension(environ))


def extension_module(file: Path) -> ModuleType:
    """Return the extension in a file, without registering it for imports. Raises ModelError."""
    loader = importlib.machinery.ExtensionFileLoader(EXTENSION, str(file))
    spec = importlib.util.spec_from_loader(EXTENSION, loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        what = f"{file} cannot be loaded: {error}. Remove it and run `jobwire engine build` again."
        raise ModelError(what) from error
    return module


def sees_gpu() -> bool:
    """Return whether torch, which must be there, finds a GPU. Imports it."""
    import torch

    return bool(torch.cuda.is_available())


def free_memory(options: Options) -> tuple[int, ...]:
    """Return the free bytes of each GPU that may be used; nothing where there is no CUDA to ask. Imports torch."""
    if importlib.util.find_spec("torch") is None or not _torch_has_cuda():
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    gpus = options.gpus(count, min(options.device, count - 1))
    return tuple(int(torch.cuda.mem_get_info(number)[0]) for number in gpus)


def _absent() -> str | None:
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            return f"ExLlamaV2 needs the package {name}, which is not installed: {EXTRA}"
    return None


def _torch_has_cuda() -> bool:
    """Return whether torch was built with CUDA. Reads its version file: importing it would need seconds."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    try:
        source = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return not metadata.version("torch").endswith("+cpu")
    built = re.search(r"^cuda\b[^=\n]*=\s*(.*)$", source, re.MULTILINE)
    return built is None or built[1].strip() != "None"


def _environment(spec: EngineSpec) -> None:
    """Set variables that torch and ExLlamaV2 read once, when they are imported."""
    device = int(spec.options.get("device", "0"))
    if device and "gpu_split" not in spec.options and "torch" not in sys.modules:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(device + 1)]
        if device >= len(names):
            raise ModelError(f"There is no GPU {device}: CUDA_VISIBLE_DEVICES is {visible}.")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[device]
    if importlib.util.find_spec("flash_attn") is None or unusable_flash_attn() is not None:
        # ExLlamaV2 would fail with a flash-attn that cannot be imported, or with another package of that name.
        os.environ["EXLLAMA_NO_FLASH_ATTN"] = "1"


def unusable_flash_attn() -> str | None:
    """Return why the installed flash-attn cannot be used; None if it can, or if there is none. Imports torch."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        import flash_attn
        import flash_attn_2_cuda  # noqa: F401 (importing it is the test)
    except Exception as error:
        # Its native part may raise anything: a build for another torch fails in many ways.
        return f"flash-attn is installed, but cannot be imported ({error}): torch's own attention is used instead"
    if not hasattr(flash_attn, "__version__"):
        return "the package flash_attn is not flash-attn 2: torch's own attention is used instead"
    return None


def _packaged() -> bool:
    """Return whether a package brought the extension, ready to be imported, or it is loaded already."""
    return EXTENSION in sys.modules or importlib.util.find_spec(EXTENSION) is not None


def _unbuilt() -> str | None:
    return None if built(os.environ) else UNBUILT
