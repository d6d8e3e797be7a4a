"""llama.cpp: any GGUF model on the CPU, through cyllama (the extra `gguf`, Python 3.12 or newer).

llama.cpp computes, samples and keeps the KV cache; `slotted` decides which sequences share a step. At most 63 tokens of
a sequence are computed at a time: then they are equal to the last bit, whatever is computed beside them. Each sequence
has a slot of the cache to itself, so the cache cannot run full. Everything that makes llama.cpp abort the process is
avoided: batches above `n_batch`, more slots than `n_batch`, partial copies between slots, grammars (llguidance does
those), and freeing the model before its context.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worker.config.settings import PIECE_TOKENS_MAX
from worker.engines.base import Broke, Delta, EngineInfo, EngineSpec, OnLoad, StepEvent
from worker.engines.llama_cpp.library import affordable_slots, library, load_model, make_context
from worker.engines.llama_cpp.reader import reader_of
from worker.engines.llama_cpp.sampler import Sampler
from worker.engines.machine import cores
from worker.engines.output.sampling import Logits, log_softmax
from worker.engines.output.sequence import Sequence
from worker.engines.slots import Placement
from worker.engines.slotted import SlotRow, SlottedEngine
from worker.errors import ModelError

CONTEXT_TOKENS_DEFAULT = 4096

PREFILL_TOKENS_MAX = 512
"""The most prompt tokens of a step, even if the scheduler allows more."""

SMALL_PARAMETERS = 50_000_000
"""Models below this size run on one thread: several would wait for each other longer than they compute."""


def load(spec: EngineSpec, on_load: OnLoad) -> SlottedEngine[LlamaCppRow]:
    """Load the GGUF file `spec.model`, which must be given, and reserve the KV cache of all its slots.

    Makes fewer slots than asked for if their cache would fill more than half of the memory beside the weights. Raises
    ModelError when the engine cannot run here, and for a file that is missing, broken or of an unsupported kind.
    """
    assert spec.model is not None, "choose() resolves the bundled model"
    lib = library()
    path = Path(spec.model)
    model = load_model(lib, path, on_load)
    try:
        return _engine(lib, model, path.name, spec)
    except (RuntimeError, ValueError, MemoryError) as error:
        model.close()
        raise ModelError(f"{path.name} cannot be run: {error}") from error


def _engine(lib: Any, model: Any, name: str, spec: EngineSpec) -> SlottedEngine[LlamaCppRow]:
    if model.has_encoder() or not model.has_decoder():
        raise ValueError("encoder models are not supported")
    reader = reader_of(model, spec)
    metadata = model.metadata()
    context_tokens = min(model.n_ctx_train, spec.context_tokens or CONTEXT_TOKENS_DEFAULT)
    slots = affordable_slots(model, spec.slots, context_tokens)
    threads = spec.threads or (1 if model.n_params < SMALL_PARAMETERS else cores())
    info = EngineInfo(
        engine="llama_cpp",
        model=metadata.get("general.name", name),
        device=f"CPU, {threads} thread{'s' if threads > 1 else ''}",
        context_tokens=context_tokens,
        vocab_size=reader.vocabulary.size,
        parameters=model.n_params,
        slots=slots,
        weights_bytes=model.size,
        has_chat_template=reader.has_template,
        kv_tokens_total=slots * context_tokens,
        deterministic=0 < spec.piece_tokens_max <= PIECE_TOKENS_MAX,
        details={"llama.cpp": str(lib.llama_version()), "model": model.desc, "slots_asked": str(spec.slots)},
    )
    return SlottedEngine(
        LlamaCppRunner(lib, model, info, threads),
        info,
        reader,
        wait_for_leader=True,
        # A model whose state is not a cache of tokens cannot go back to a prefix of it.
        reuse=not (model.is_recurrent() or model.is_hybrid()),
        step_prefill_tokens_max=PREFILL_TOKENS_MAX,
        piece_tokens_max=spec.piece_tokens_max,
    )


@dataclass(slots=True, eq=False, kw_only=True)
class LlamaCppRow(SlotRow):
    """A sequence in a slot, with its sampler; `output` is where the batch has its logits, `last` the latest token."""

    sampler: Sampler
    output: int = -1
    last: int = -1


class LlamaCppRunner:
    """Computes with one llama.cpp context, see `worker.engines.slotted.Runner`."""

    def __init__(self, lib: Any, model: Any, info: EngineInfo, threads: int) -> None:
        self._lib = lib
        self._model = model
        self._info = info
        batch_tokens = PREFILL_TOKENS_MAX + info.slots
        self._context = make_context(lib, model, info.slots, info.context_tokens, batch_tokens, threads)
        self._batch = lib.LlamaBatch(n_tokens=batch_tokens, embd=0, n_seq_max=1)
        # Whether any output was of numbers.
        self._sound = False

    def share(self, placement: Placement) -> int:
        """Copy the donor's slot, unless it is the same, and drop all behind the shared tokens."""
        slot, donor, shared = placement
        if donor != slot:
            # Parts cannot be copied between slots: everything is, and then the rest is dropped.
            self._context.memory_seq_rm(slot, -1, -1)
            self._context.memory_seq_cp(donor, slot, -1, -1)
        if shared and self._context.memory_seq_rm(slot, shared, -1):
            return shared
        self._context.memory_seq_rm(slot, -1, -1)
        return 0

    def row(self, sequence: Sequence, slot: int, cached: int) -> LlamaCppRow:
        """Return the row of a sequence that is admitted."""
        sampler = Sampler(self._lib, sequence, self._info.vocab_size, self._info.context_tokens)
        return LlamaCppRow(sequence, slot, cached, len(sequence.tokens), sampler=sampler)

    def run(self, work: list[tuple[LlamaCppRow, int]]) -> list[StepEvent]:
        """Compute the next tokens of all rows in one batch, and choose the next token of those in decode.

        Raises RuntimeError or ValueError when llama.cpp fails on the batch, which no input should achieve.
        """
        self._batch.clear()
        # llama.cpp computes rows together only where they are in ascending order of slots without a gap.
        for row, count in sorted(work, key=lambda item: item[0].slot):
            self._add(row, count)
        self._context.decode(self._batch)
        events: list[StepEvent] = []
        for row, count in work:
            events += row.record(count)
            if not row.prefilling:
                event = self._choose(row)
                if event is not None:
                    events.append(event)
        return events

    def close(self) -> None:
        """Free everything: the context before its model, or llama.cpp aborts."""
        self._batch.close()
        self._context.close()
        self._model.close()

    def _add(self, row: LlamaCppRow, count: int) -> None:
        """Put the next tokens of a sequence into the batch; logits are computed for its last token only."""
        tokens, end = row.sequence.tokens, row.cached + count
        for position in range(row.cached, end):
            last = position + 1 == len(tokens)
            self._batch.add(tokens[position], position, [row.slot], last)
        row.output = self._batch.n_tokens - 1

    def _choose(self, row: LlamaCppRow) -> Delta | Broke | None:
        """Choose and append one sequence's next token; an error here breaks that sequence alone."""
        sequence = row.sequence
        try:
            token = row.sampler.choose(self._context, row.output)
            if token == row.last or not self._sound:
                # llama.cpp draws from what is not a number, and always the same token. Looking at all logits takes
                # milliseconds, so it is done where that shows.
                self._check_numbers(row)
            row.last = token
            if not sequence.accepts(token):
                logits = self._logits(row)
                sequence.reshape(logits)
                token = sequence.choose_allowed(logits)
            row.sampler.observe(token)
            wanted = sequence.sampling.logprobs is not None
            return sequence.append(token, log_softmax(self._logits(row)[None])[0] if wanted else None)
        except Exception as error:
            return sequence.fail(error)

    def _check_numbers(self, row: LlamaCppRow) -> None:
        logits = self._logits(row)
        if np.isnan(logits).any() or not np.isfinite(logits).any():
            raise ArithmeticError("the model's output is not a number")
        self._sound = True

    def _logits(self, row: LlamaCppRow) -> Logits:
        """Return a copy of the logits (vocab,). Slow for large vocabularies: they come as a list of numbers."""
        return np.array(self._context.get_logits_ith(row.output), np.float32)
