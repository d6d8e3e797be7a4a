"""Prompts read by an engine's own reader, in this process."""

from __future__ import annotations

from worker.engines.base import Engine, Generation, Prepared


def prepare(engine: Engine, generation: Generation) -> Prepared:
    """Return a generation as this engine can admit it."""
    return engine.adopt(engine.reader.prepare(generation, engine.info.bounds))
