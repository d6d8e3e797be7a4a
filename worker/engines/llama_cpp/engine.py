"""llama.cpp: any GGUF model on the CPU, through cyllama (the extra `gguf`, Python 3.12 or newer).

llama.cpp computes, samples and keeps the KV cache; which sequences share a step is decided here. Each sequence has a
slot of the cache to itself, so the cache cannot run full. What makes llama.cpp abort the process is kept out of reach:
batches above `n_batch`, more slots than `n_batch`, partial copies between slots, grammars (llguidance does those), and
freeing the model before its context.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worker.engines.base import (
    Broke,
    Capacity,
    Delta,
    EngineInfo,
    EngineSpec,
    Generation,
    OnLoad,
    Prefilled,
    Prepared,
    StepEvent,
)
from worker.engines.llama_cpp.library import LlamaVocabulary, affordable_slots, library, load_model, make_context
from worker.engines.machine import cores
from worker.engines.output.guide import Guides
from worker.engines.output.sampling import REPETITION_PENALTY_MIN, Logits, log_softmax, mix
from worker.engines.output.sequence import Sequence
from worker.engines.prompt.chat import ChatTemplate
from worker.engines.prompt.prepare import prepare
from worker.engines.slots import Slots
from worker.errors import ModelError

CONTEXT_TOKENS_DEFAULT = 4096
PREFILL_TOKENS_MAX = 512  # per step, whatever the scheduler allows
SMALL_PARAMETERS = 50_000_000  # below, threads wait for each other longer than they compute
TEMPERATURE_MIN = 1e-4  # below, logits divided by it overflow


def load(spec: EngineSpec, on_load: OnLoad) -> LlamaCppEngine:
    """Load the GGUF file `spec.model`, which must be given, and reserve the KV cache of all its slots.

    Fewer slots than asked are made when their cache would take more than half of the memory that the weights leave.
    Raises ModelError when the engine cannot run here, and for a file that is missing, broken or of an unsupported kind.
    """
    assert spec.model is not None, "whoever chose this engine knows the model"
    lib = library()
    path = Path(spec.model)
    model = load_model(lib, path, on_load)
    try:
        return LlamaCppEngine(lib, model, path.name, spec)
    except (RuntimeError, ValueError, MemoryError) as error:
        model.close()
        raise ModelError(f"{path.name} cannot be run: {error}") from error


class LlamaCppEngine:
    """The engine port over one llama.cpp context. Everything happens in the thread that calls."""

    def __init__(self, lib: Any, model: Any, name: str, spec: EngineSpec) -> None:
        self._lib = lib
        self._model = model
        if model.has_encoder() or not model.has_decoder():
            raise ValueError("encoder models are not supported")
        self._vocabulary = LlamaVocabulary(model.get_vocab())
        self._guides = Guides(self._vocabulary)
        metadata = model.metadata()
        template = spec.chat_template or metadata.get("tokenizer.chat_template") or None
        self._chat = ChatTemplate(
            template, bos_token=self._vocabulary.name(self._vocabulary.bos_id), eos_token=self._vocabulary.eos_name
        )
        self._context_tokens = min(model.n_ctx_train, spec.context_tokens or CONTEXT_TOKENS_DEFAULT)
        slots = affordable_slots(model, spec.slots, self._context_tokens)
        threads = spec.threads or (1 if model.n_params < SMALL_PARAMETERS else cores())
        batch_tokens = PREFILL_TOKENS_MAX + slots
        self._context = make_context(lib, model, slots, self._context_tokens, batch_tokens, threads)
        self._batch = lib.LlamaBatch(n_tokens=batch_tokens, embd=0, n_seq_max=1)
        self._slots = Slots(slots)
        # A model whose state is not a cache of tokens cannot go back to a prefix of it.
        self._reuse = not (model.is_recurrent() or model.is_hybrid())
        self._running: dict[str, _Row] = {}  # in order of admission
        self._info = EngineInfo(
            engine="llama_cpp",
            model=metadata.get("general.name", name),
            device=f"CPU, {threads} thread{'s' if threads > 1 else ''}",
            context_tokens=self._context_tokens,
            vocab_size=self._vocabulary.size,
            parameters=model.n_params,
            slots=slots,
            weights_bytes=model.size,
            has_chat_template=template is not None,
            details={"llama.cpp": str(lib.llama_version()), "model": model.desc, "slots_asked": str(spec.slots)},
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
        slot, cached = self._place(sequence.tokens)
        sampler = _Sampler(self._lib, sequence, self._vocabulary.size, self._context_tokens)
        self._running[sequence.lease] = _Row(sequence, sampler, slot, cached)
        return cached

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:
        """Advance every sequence: prompt tokens in order of admission within the limit, one token for those in decode.

        Raises RuntimeError or ValueError when llama.cpp fails on the batch, which no input should achieve.
        """
        work = self._plan(min(prefill_tokens_max, PREFILL_TOKENS_MAX))
        if not work:
            return []
        self._batch.clear()
        # llama.cpp computes rows together only where they are in ascending order of slots without a gap.
        for row, count in sorted(work, key=lambda item: item[0].slot):
            self._add(row, count)
        self._context.decode(self._batch)
        events: list[StepEvent] = []
        for row, count in work:
            if row.prefilling:
                events.append(Prefilled(row.sequence.lease, row.cached + count, row.prefill_tokens))
            row.cached += count
            if row.cached == len(row.sequence.tokens):
                event = self._choose(row)
                if event is not None:
                    events.append(event)
                if row.sequence.finished:
                    self.leave(row.sequence.lease)
        return events

    def leave(self, lease: str) -> None:
        """Take a sequence out of the batch. What its slot holds is kept for prompts that begin alike."""
        row = self._running.pop(lease, None)
        if row is not None:
            self._slots.give_back(row.slot, row.sequence.tokens[: row.cached] if self._reuse else [])

    def close(self) -> None:
        """Free everything: the context before its model, or llama.cpp aborts."""
        self._running.clear()
        self._batch.close()
        self._context.close()
        self._model.close()

    def _place(self, tokens: list[int]) -> tuple[int, int]:
        """A free slot that holds nothing but a prefix of `tokens`, and how many of them."""
        busy = {row.slot: row.sequence.tokens[: row.cached] if self._reuse else [] for row in self._running.values()}
        slot, donor, shared = self._slots.place(tokens, busy)
        if donor != slot:
            # Parts cannot be copied between slots: everything is, and then the rest is dropped.
            self._context.memory_seq_rm(slot, -1, -1)
            self._context.memory_seq_cp(donor, slot, -1, -1)
        if shared and self._context.memory_seq_rm(slot, shared, -1):
            return slot, shared
        self._context.memory_seq_rm(slot, -1, -1)
        return slot, 0

    def _plan(self, budget: int) -> list[tuple[_Row, int]]:
        """How many tokens of each sequence this step computes."""
        work = []
        for row in self._running.values():
            count = min(row.prefill_tokens - row.cached, budget) if row.prefilling else 1
            if row.prefilling:
                budget -= count
            if count:
                work.append((row, count))
        return work

    def _add(self, row: _Row, count: int) -> None:
        """Put the next tokens of a sequence into the batch; logits are computed for its last token only."""
        tokens, end = row.sequence.tokens, row.cached + count
        for position in range(row.cached, end):
            last = position + 1 == len(tokens)
            self._batch.add(tokens[position], position, [row.slot], last)
        row.output = self._batch.n_tokens - 1

    def _choose(self, row: _Row) -> Delta | Broke | None:
        """One sequence's next token; whatever goes wrong here concerns it alone."""
        sequence = row.sequence
        try:
            token = row.sampler.choose(self._context, row.output)
            if not sequence.accepts(token):
                logits = self._logits(row)
                sequence.reshape(logits)
                token = sequence.choose_allowed(logits)
            row.sampler.observe(token)
            wanted = sequence.sampling.logprobs is not None
            return sequence.take(token, log_softmax(self._logits(row)[None])[0] if wanted else None)
        except Exception as error:
            return sequence.broke(error)

    def _logits(self, row: _Row) -> Logits:
        """A copy of the logits (vocab,). Slow for large vocabularies: they come as a list of numbers."""
        return np.array(self._context.get_logits_ith(row.output), np.float32)


class _Row:
    """A sequence in the batch: `cached` of its tokens are in slot `slot`, `output` is where its logits are."""

    def __init__(self, sequence: Sequence, sampler: _Sampler, slot: int, cached: int) -> None:
        self.sequence = sequence
        self.sampler = sampler
        self.slot = slot
        self.cached = cached
        self.prefill_tokens = len(sequence.tokens)
        self.output = -1

    @property
    def prefilling(self) -> bool:
        return self.cached < self.prefill_tokens


class _Sampler:
    """llama.cpp's sampler chain for one sequence, in the order of worker.engines.output.sampling.

    The chain keeps what penalties count; each token is drawn by a copy that ends in a generator seeded for it alone,
    so the draw is a function of seed and position.
    """

    def __init__(self, lib: Any, sequence: Sequence, vocab: int, context_tokens: int) -> None:
        self._sequence = sequence
        sampling = sequence.sampling
        chain = self._chain = lib.LlamaSampler()
        links = 0
        if sequence.bias:
            chain.add_logit_bias(vocab, list(sequence.bias.items()))
            links += 1
        self._penalized = False
        output = sequence.tokens[sequence.prompt_tokens :]
        # Repetition counts prompt and output, the others the output alone: two links with a memory each.
        for counted, penalties in (
            (sequence.tokens, (max(sampling.repetition_penalty, REPETITION_PENALTY_MIN), 0.0, 0.0)),
            (output, (1.0, sampling.frequency_penalty, sampling.presence_penalty)),
        ):
            if penalties != (1.0, 0.0, 0.0):
                chain.add_penalties(vocab, context_tokens, *penalties)
                link = chain.chain_get(links)
                for token in counted:
                    link.accept(token)
                links += 1
                self._penalized = True
        if sampling.temperature > 0.0:
            chain.add_temp(max(sampling.temperature, TEMPERATURE_MIN))
            if sampling.top_k > 0:
                chain.add_top_k(sampling.top_k)
            if sampling.top_p < 1.0:
                chain.add_top_p(sampling.top_p, 1)
            if sampling.min_p > 0.0:
                chain.add_min_p(sampling.min_p, 1)

    def choose(self, context: Any, output: int) -> int:
        """Choose a token from the logits at `output`. Raises ValueError when the chain leaves none."""
        chain = self._chain.clone()
        sampling = self._sequence.sampling
        if sampling.temperature > 0.0:
            # 31 bits: the largest 32-bit number would mean a seed from the clock.
            chain.add_dist(mix(sampling.seed, self._sequence.position) >> 33)
        else:
            chain.add_greedy()
        token: int = chain.sample(context, output)
        return token

    def observe(self, token: int) -> None:
        """Count a token of the output."""
        if self._penalized:
            self._chain.accept(token)
