"""Questions that commands ask about the GPU engine: can it be built, can it run, does a model fit.

Like `choose`, this module knows the engine by name, and imports it only when one of the functions is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from worker.engines.base import EngineSpec


def build_extension(environ: Mapping[str, str], on_progress: Callable[[int, int], None]) -> float:
    """Compile ExLlamaV2's extension on this machine; return the duration in seconds.

    `on_progress` is called with the number of files compiled and of all files. Raises ModelError if the build fails.
    """
    from worker.engines.exllamav2.build import build

    return build(environ, on_progress)


def gpu_shortcomings(environ: Mapping[str, str]) -> list[str]:
    """Return everything that keeps ExLlamaV2 from running here, or from running at its best, with remedies."""
    from worker.engines.exllamav2.build import shortcomings

    return shortcomings(environ)


def gpu_memory(spec: EngineSpec) -> tuple[bool | None, str, str]:
    """Return whether the folder `spec.model` fits the GPUs' memory (None: unknown), figures, and what to change.

    Raises ModelError for a folder that is no model, and for wrong settings.
    """
    from worker.engines.exllamav2 import gpu_memory as look

    return look(spec)
