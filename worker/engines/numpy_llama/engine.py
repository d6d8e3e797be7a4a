"""The numpy engine: runs GGUF models of the Llama family on any CPU, with nothing but numpy.

It is part of every installation, runs the bundled model, and is the oracle that other engines are compared with. The
mathematics is in `llama_forward`; here is the continuous batching around it: sequences join and leave between any two
steps, and every step is one forward pass over a token of each sequence in decode and chunks of the prompts in prefill.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.engines.base import (
    Broke,
    Capacity,
    EngineInfo,
    EngineSpec,
    Generation,
    LoadProgress,
    OnLoad,
    Prefilled,
    Prepared,
    StepEvent,
)
from worker.engines.machine import memory_bytes
from worker.engines.numpy_llama.forward import Chunk, Forward
from worker.engines.numpy_llama.gguf import Gguf, open_gguf
from worker.engines.numpy_llama.kv_cache import KvCache
from worker.engines.numpy_llama.weights import Weights, load_weights
from worker.engines.output.guide import Guides
from worker.engines.output.sequence import Sequence, advance
from worker.engines.prompt.bpe import Bpe, load_bpe
from worker.engines.prompt.chat import ChatTemplate
from worker.engines.prompt.prepare import prepare
from worker.engines.slots import SHARED_TOKENS_MIN, Slots, common_prefix
from worker.errors import ModelError

CONTEXT_TOKENS_DEFAULT = 4096


def load(spec: EngineSpec, on_load: OnLoad) -> NumpyLlama:
    """Load the GGUF file `spec.model`, which must be given.

    Fewer slots than asked are made when their cache could take more than half of the memory that the weights leave.
    Raises ModelError for a file that is missing, broken, or not a Llama that can be computed here.
    """
    assert spec.model is not None, "choose() resolves the bundled model"
    file = open_gguf(Path(spec.model))
    on_load(LoadProgress("tokenizer", 0, 1))
    vocabulary = load_bpe(file)
    # Damaged weights show in the output, as sequences that break.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weights = load_weights(file, on_load)
    return NumpyLlama(file, spec, vocabulary, weights)


class NumpyLlama:
    """The engine port over numpy. Made by `load`."""

    def __init__(self, file: Gguf, spec: EngineSpec, vocabulary: Bpe, weights: Weights) -> None:
        shape = weights.shape
        self._context_tokens = min(shape.context, spec.context_tokens or CONTEXT_TOKENS_DEFAULT)
        slots = _slots(file, weights, spec.slots, self._context_tokens)
        self._cache = KvCache(shape.layers, slots, shape.kv_heads, self._context_tokens, shape.head_dim)
        self._vocabulary = vocabulary
        self._guides = Guides(vocabulary)
        template = spec.chat_template or file.get("tokenizer.chat_template", str, "") or None
        end = vocabulary.name(vocabulary.end_id)
        self._chat = ChatTemplate(template, bos_token=vocabulary.name(vocabulary.bos_id), eos_token=end)
        self._forward = Forward(weights, self._cache, self._context_tokens)
        self._slots = Slots(slots)
        self._running: dict[str, _Row] = {}  # in order of admission
        self._info = EngineInfo(
            engine="numpy",
            model=file.get("general.name", str, file.path.name),
            device="CPU",
            context_tokens=self._context_tokens,
            vocab_size=vocabulary.size,
            parameters=sum(tensor.size for tensor in file.tensors.values()),
            slots=slots,
            weights_bytes=weights.nbytes,
            has_chat_template=template is not None,
            details={"weights": "float32", "kv_bytes_max": str(self._cache.nbytes), "slots_asked": str(spec.slots)},
        )

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine, constant after loading."""
        return self._info

    def prepare(self, generation: Generation) -> Prepared:
        """Render, tokenize and check a generation, see `worker.engines.prompt.prepare`."""
        return prepare(generation, self._vocabulary, self._chat, self._guides, self._context_tokens)

    def capacity(self) -> Capacity:
        """Return the slots that are free now; each has the cache of a whole context."""
        return self._slots.capacity(self._context_tokens)

    def fits(self, prepared: Prepared) -> bool:
        """Tell whether a slot is free: each has room for any sequence."""
        return self.capacity().fits(prepared.tokens_max)

    def admit(self, prepared: Prepared) -> int:
        """Give a sequence a slot; return how many of its tokens any slot had in its cache."""
        assert self.fits(prepared), "admitted without room"
        assert prepared.lease not in self._running, "admitted twice"
        sequence = Sequence(prepared, self._vocabulary, self._guides)
        busy = {row.slot: row.sequence.tokens[: row.cached] for row in self._running.values()}
        slot, donor, shared = self._slots.place(sequence.tokens, busy)
        if donor != slot:
            self._cache.copy(donor, slot, shared)
        row = self._running[sequence.lease] = _Row(sequence, slot, shared, len(sequence.tokens))
        self._find_leader(row)
        return shared

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:
        """Advance all sequences: one token for those in decode, prompts in order of admission up to the limit."""
        work = self._plan(prefill_tokens_max)
        if not work:
            return []
        hidden = self._forward([row.chunk(count) for row, count in work])
        sound = np.all(np.isfinite(hidden), axis=1)
        events: list[StepEvent] = []
        ready: list[int] = []
        for number, (row, count) in enumerate(work):
            if not sound[number]:
                events.append(self._broke(row, count))
                continue
            if row.prefilling:
                events.append(Prefilled(row.sequence.lease, row.cached + count, row.prefill_tokens))
            row.cached += count
            if not row.prefilling:
                ready.append(number)
        self._catch_up()
        if ready:
            sequences = [work[number][0].sequence for number in ready]
            events += advance(sequences, self._forward.logits(hidden[ready]))
            for sequence in sequences:
                if sequence.finished:
                    self.leave(sequence.lease)
        return events

    def leave(self, lease: str) -> None:
        """Take a sequence out of the batch. What its slot holds is kept for prompts that begin alike."""
        row = self._running.pop(lease, None)
        if row is not None:
            self._slots.give_back(row.slot, row.sequence.tokens[: row.cached])
            for other in self._running.values():
                if other.leader is row:
                    other.leader = None

    def close(self) -> None:
        """Forget all sequences. Memory is freed with the object."""
        self._running.clear()

    def _broke(self, row: _Row, count: int) -> Broke:
        """Take out a sequence whose last `count` tokens gave no numbers, and clear its slot.

        Whoever gets it next may read past its end, and what is not a number stays so even if it is masked.
        """
        self._cache.clear(row.slot, row.cached + count)
        row.cached = 0
        self.leave(row.sequence.lease)
        return row.sequence.broke(ArithmeticError("the model's output is not a number"))

    def _find_leader(self, row: _Row) -> None:
        """Let a prompt wait for one before it that is in prefill and begins alike, rather than compute the same."""
        least = row.cached + SHARED_TOKENS_MIN
        for other in self._running.values():
            if other.prefilling and other is not row:
                common = common_prefix(row.sequence.tokens[:-1], other.sequence.tokens[: other.prefill_tokens])
                if common >= least:
                    row.leader, row.common, least = other, common, common + 1

    def _catch_up(self) -> None:
        """Give those that waited what their leaders have computed."""
        for row in self._running.values():
            if row.leader is not None and row.leader.cached >= row.common:
                self._cache.copy(row.leader.slot, row.slot, row.common)
                row.cached, row.leader = row.common, None

    def _plan(self, budget: int) -> list[tuple[_Row, int]]:
        """How many tokens of each sequence this step computes."""
        work = []
        for row in self._running.values():
            if row.leader is not None:
                continue
            count = 1
            if row.prefilling:
                count = min(row.prefill_tokens - row.cached, budget)
                budget -= count
            if count > 0:
                work.append((row, count))
        return work


@dataclass(slots=True, eq=False)
class _Row:
    """A sequence in the batch: `cached` of its tokens are in `slot`; the first `prefill_tokens` were there to begin.

    While it waits for `leader`, it will take over the first `common` tokens from it.
    """

    sequence: Sequence
    slot: int
    cached: int
    prefill_tokens: int
    leader: _Row | None = None
    common: int = 0

    @property
    def prefilling(self) -> bool:
        return self.cached < self.prefill_tokens

    def chunk(self, count: int) -> Chunk:
        return Chunk(self.slot, self.cached, self.sequence.tokens[self.cached : self.cached + count])


def _slots(file: Gguf, weights: Weights, asked: int, context_tokens: int) -> int:
    """As many slots as asked, if their cache fits half of the memory that the weights leave."""
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
