"""The part of `jobwire doctor` about the model: it is opened as `serve` would open it, by processes of the same kind.

What the file says of itself comes first, then whether its prompts can be read, then whether the engine loads it. A
model that cannot fit is not loaded: the kernel might end another process for want of memory. Nor is one in a folder:
ExLlamaV2 takes minutes, and the GPU may be in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from worker.cli.findings import Finding
from worker.config import Settings
from worker.engines.base import EngineSpec
from worker.engines.choose import choose
from worker.engines.gguf.file import open_gguf
from worker.engines.gguf.summary import Summary, summary_of
from worker.engines.machine import memory_free_bytes
from worker.errors import JobwireError, ModelError
from worker.processes.messages import Loaded, Open, OpenPreparer, PreparerLoaded, TemplateFailed
from worker.processes.rehearsal import rehearse, rehearse_engine

GIB = 1 << 30
MIB = 1 << 20


def check_model(settings: Settings) -> Iterator[Finding]:
    """Is there an engine for the model, and does it load?"""
    try:
        _, spec, why = choose(Open.of(settings).spec)
    except JobwireError as error:
        yield Finding("problem", error.detail)
        return
    path = Path(spec.model or "")
    if not path.exists():
        fix = "Name a GGUF file, or a folder for ExLlamaV2: --model PATH"
        yield Finding("problem", f"There is no model file {path}", fix)
        return
    yield Finding("ok", f"Model: {settings.model or 'the bundled one'}. Engine: {spec.engine}, because {why}")
    summary = None if path.is_dir() else _summary(path)
    if summary is not None:
        yield from _described(summary, settings)
    prompts = _prompts(settings)
    yield prompts
    if prompts.level == "ok" and not path.is_dir():
        yield from _loaded(settings, spec, summary)


def _summary(path: Path) -> Summary | None:
    """Return what the file says, None for one that is not sound: the engine then says why, better than the header."""
    try:
        return summary_of(open_gguf(path))
    except ModelError:
        return None


def _described(summary: Summary, settings: Settings) -> Iterator[Finding]:
    made_for = "an unknown context" if summary.context is None else f"a context of {summary.context:,} tokens"
    yield Finding(
        "ok",
        f"Model file: architecture {summary.architecture}, {summary.weights / 1e6:,.0f}M weights stored as "
        f"{summary.quantisation} in {_size(summary.weights_bytes)}, made for {made_for}",
    )
    names = [name for name in summary.templates if name != "default"]
    template = "its own" + (f" (also named ones: {', '.join(names)})" if names else "")
    if settings.chat_template:
        template = settings.chat_template
    elif not summary.templates:
        template = "none in the file, so messages are put into a plain one"
    yield Finding("ok", f"Tokenizer: {summary.tokenizer}, {summary.tokens:,} tokens. Chat template: {template}")


def _prompts(settings: Settings) -> Finding:
    """Can the model's vocabulary and chat template be read, by the process that does so in `serve`?"""
    went = rehearse(OpenPreparer.of(settings), settings.engine_start_timeout_s)
    answer = went.answer
    if isinstance(answer, PreparerLoaded):
        memory = f" in {_size(went.memory_bytes)}" if went.memory_bytes else ""
        return Finding("ok", f"Chat template and vocabulary are read by a process of their own{memory}")
    if isinstance(answer, TemplateFailed):
        return Finding("problem", answer.error.detail, "Name a file with another template: --chat-template PATH")
    return Finding("problem", answer.error.detail if answer else f"Prompts cannot be read: {went.ending}")


def _loaded(settings: Settings, spec: EngineSpec, summary: Summary | None) -> Iterator[Finding]:
    """Does the engine load the model, and what has it room for?"""
    free = memory_free_bytes()
    needed = 0 if summary is None else summary.memory_bytes(spec.engine)
    if free is not None and needed > free:
        yield Finding(
            "problem",
            f"Memory: the weights need {_size(needed)} on {spec.engine}, and {_size(free)} are free",
            "Stop what uses the memory, or give a smaller model, or one that is quantised to fewer bits.",
        )
        return
    opening = Open.of(settings)
    crowded = free is not None and needed + _cache_bytes(summary, spec.engine, spec.slots, spec.context_tokens) > free
    if crowded:
        # Whatever else runs here needs its memory more than this test does.
        opening = msgspec.structs.replace(opening, spec=msgspec.structs.replace(opening.spec, slots=1))
    went = rehearse_engine(opening, settings.engine_start_timeout_s)
    if not isinstance(went.answer, Loaded):
        yield Finding("problem", went.answer.error.detail if went.answer else f"The model does not load: {went.ending}")
        return
    info = went.answer.info
    slots = f"{info.slots} {'slot' if info.slots == 1 else 'slots'}" + (" for this test" if crowded else "")
    context = f"context of {info.context_tokens:,} tokens"
    yield Finding("ok", f"The engine loads it in {went.seconds:.1f} s: {context}, {slots}")
    cache = _cache_bytes(summary, spec.engine, spec.slots if crowded else info.slots, info.context_tokens)
    yield _memory(needed or info.weights_bytes, cache, went.memory_bytes, free)


def _cache_bytes(summary: Summary | None, engine: str, slots: int, context_tokens: int) -> int:
    """Return the memory of the KV cache of all slots, at most; `context_tokens` 0 is the model's. 0 if not known."""
    if summary is None:
        return 0
    context = summary.context or 0
    tokens = min(context_tokens, context) if context_tokens and context else context_tokens or context
    return summary.cache_bytes(engine, slots * tokens) or 0


def _memory(weights: int, cache: int, now: int | None, free: int | None) -> Finding:
    """Does it all fit, with every slot full?"""
    figures = [f"weights {_size(weights)}"]
    if cache:
        figures.append(f"at most {_size(cache)} of KV cache when all slots are full")
    if now is not None:
        figures.append(f"{_size(now)} after loading")
    figures.append("free memory is not known" if free is None else f"{_size(free)} free")
    if free is None or weights + cache <= free:
        return Finding("ok", f"Memory: {', '.join(figures)}")
    return Finding("note", f"Memory: {', '.join(figures)}", "Give fewer --slots, or a smaller --context-tokens.")


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{max(size // MIB, 1):,} MiB"
