"""The numpy engine: runs GGUF models of the Llama family on any CPU, with nothing but numpy.

It is part of every installation, runs the bundled model, and is the oracle that other engines are compared with. The
mathematics is in `forward`, the continuous batching around it in `slotted`: every step is one forward pass over a token
of each sequence in decode and chunks of the prompts in prefill.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from worker.engines.base import Broke, EngineInfo, EngineSpec, LoadProgress, OnLoad, StepEvent
from worker.engines.gguf.file import Gguf, open_gguf
from worker.engines.machine import memory_bytes
from worker.engines.numpy_llama.forward import Chunk, Forward
from worker.engines.numpy_llama.kv_cache import KvCache
from worker.engines.numpy_llama.reader import reader_of
from worker.engines.numpy_llama.weights import LlamaWeights, load_weights
from worker.engines.output.sequence import Sequence, advance
from worker.engines.slots import Placement
from worker.engines.slotted import SlotRow, SlottedEngine
from worker.errors import ModelError

CONTEXT_TOKENS_DEFAULT = 4096


def load(spec: EngineSpec, on_load: OnLoad) -> SlottedEngine[SlotRow]:
    """Load the GGUF file `spec.model`, which must be given.

    Makes fewer slots than asked for if their cache could fill more than half of the memory beside the weights. Raises
    ModelError for a file that is missing, broken, or not a Llama that can be computed here.
    """
    assert spec.model is not None, "choose() resolves the bundled model"
    file = open_gguf(Path(spec.model))
    on_load(LoadProgress("tokenizer", 0, 1))
    reader = reader_of(file, spec)
    # Damaged weights show in the output, as sequences that break.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weights = load_weights(file, on_load)
    shape = weights.shape
    context_tokens = min(shape.context, spec.context_tokens or CONTEXT_TOKENS_DEFAULT)
    slots = _slots(file, weights, spec.slots, context_tokens)
    cache = KvCache(shape.layers, slots, shape.kv_heads, context_tokens, shape.head_dim)
    info = EngineInfo(
        engine="numpy",
        model=file.get("general.name", str, file.path.name),
        device="CPU",
        context_tokens=context_tokens,
        vocab_size=reader.vocabulary.size,
        parameters=sum(tensor.size for tensor in file.tensors.values()),
        slots=slots,
        weights_bytes=weights.nbytes,
        has_chat_template=reader.has_template,
        kv_tokens_total=slots * context_tokens,
        deterministic=True,
        details={"weights": "float32", "kv_bytes_max": str(cache.nbytes), "slots_asked": str(spec.slots)},
    )
    return SlottedEngine(NumpyRunner(weights, cache, context_tokens), info, reader, wait_for_leader=True)


class NumpyRunner:
    """Computes with one model and its cache, see `worker.engines.slotted.Runner`."""

    def __init__(self, weights: LlamaWeights, cache: KvCache, context_tokens: int) -> None:
        self._cache = cache
        self._forward = Forward(weights, cache, context_tokens)

    def share(self, placement: Placement) -> int:
        """Copy the shared tokens, unless they are in that slot already; return how many there are."""
        slot, donor, shared = placement
        if donor != slot:
            self._cache.copy(donor, slot, shared)
        return shared

    def row(self, sequence: Sequence, slot: int, cached: int) -> SlotRow:
        """Return the row of a sequence that is admitted."""
        return SlotRow(sequence, slot, cached, len(sequence.tokens))

    def run(self, work: list[tuple[SlotRow, int]]) -> list[StepEvent]:
        """Compute the next tokens of all rows in one pass, and choose the next token of those in decode."""
        hidden = self._forward([_chunk(row, count) for row, count in work])
        finite = np.all(np.isfinite(hidden), axis=1)
        events: list[StepEvent] = []
        decoding: list[int] = []
        for index, (row, count) in enumerate(work):
            if not finite[index]:
                events.append(self._fail(row, count))
                continue
            events += row.record(count)
            if not row.prefilling:
                decoding.append(index)
        if decoding:
            sequences = [work[index][0].sequence for index in decoding]
            events += advance(sequences, self._forward.logits(hidden[decoding]))
        return events

    def close(self) -> None:
        """Do nothing: memory is freed with the object."""

    def _fail(self, row: SlotRow, count: int) -> Broke:
        """End a sequence whose last `count` tokens gave no numbers, and clear its slot.

        The next sequence in the slot may read past its own end, and what is not a number stays so even if masked.
        """
        self._cache.clear(row.slot, row.cached + count)
        row.cached = 0
        return row.sequence.fail(ArithmeticError("the model's output is not a number"))


def _chunk(row: SlotRow, count: int) -> Chunk:
    return Chunk(row.slot, row.cached, row.sequence.tokens[row.cached : row.cached + count])


def _slots(file: Gguf, weights: LlamaWeights, asked: int, context_tokens: int) -> int:
    """Return the number of slots asked for, or fewer: their cache fits into half of the memory beside the weights."""
    memory, shape = memory_bytes(), weights.shape
    if memory is None:
        return asked
    slot_bytes = context_tokens * KvCache.bytes_per_token(shape.layers, shape.kv_heads, shape.head_dim)
    room = (memory - weights.nbytes) // 2
    if slot_bytes > room:
        raise ModelError(
            f"{file.path}: a sequence of {context_tokens} tokens needs {slot_bytes >> 20} MiB of KV cache, and there "
            f"is room for {room >> 20} MiB. Give a smaller --context-tokens."
        )
    return min(asked, room // slot_bytes)
