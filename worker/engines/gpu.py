"""What commands ask of the GPU engine, which is imported only then."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from worker.engines.base import EngineSpec


def build_extension(environ: Mapping[str, str], on_progress: Callable[[int, int], None]) -> float:
    """Compile what ExLlamaV2 needs on this machine; return the seconds it took.

    `on_progress` hears how many files of how many are compiled. Raises ModelError when it cannot be built.
    """
    from worker.engines.exllamav2.build import build

    return build(environ, on_progress)


def gpu_shortcomings(environ: Mapping[str, str]) -> list[str]:
    """Say all that keeps ExLlamaV2 from running here, or from running as it could, and how to get it."""
    from worker.engines.exllamav2.build import shortcomings

    return shortcomings(environ)


def gpu_memory(spec: EngineSpec) -> tuple[bool | None, str, str]:
    """Return whether the folder `spec.model` fits the GPUs' memory (None: nobody knows), figures, and what to change.

    Raises ModelError for a folder that is no model, and for wrong settings.
    """
    from worker.engines.exllamav2 import gpu_memory as look

    return look(spec)
