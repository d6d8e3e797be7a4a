"""ExLlamaV2's own objects, built from what was asked for: model, KV cache, tokenizer, generator.

Its constructors drop keyword arguments that they do not know without a word, so everything goes through `strictly`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from exllamav2 import (
    ExLlamaV2,
    ExLlamaV2Cache,
    ExLlamaV2Cache_Q4,
    ExLlamaV2Cache_Q6,
    ExLlamaV2Cache_Q8,
    ExLlamaV2Cache_TP,
    ExLlamaV2Config,
    ExLlamaV2Lora,
    ExLlamaV2Tokenizer,
)
from exllamav2.generator import ExLlamaV2DynamicGenerator

from worker.engines.base import EngineSpec, LoadProgress, OnLoad
from worker.engines.exllamav2 import paged_attention
from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.options import PAGE_TOKENS, Options
from worker.engines.machine import cores
from worker.errors import ModelError

Made = TypeVar("Made")

# Bits per value, with the scale that groups of 32 share.
CACHE_BITS = {"fp16": 16.0, "q8": 8.5, "q6": 6.5, "q4": 4.5}
CACHES = {
    "fp16": ExLlamaV2Cache,
    "q8": ExLlamaV2Cache_Q8,
    "q6": ExLlamaV2Cache_Q6,
    "q4": ExLlamaV2Cache_Q4,
}
# Left free on each GPU for activations, logits and the allocator.
RESERVE_BYTES = 1 << 30
SAMPLING_THREADS_MAX = 16
# What the library raises for a model that it cannot read.
UNREADABLE = (AssertionError, AttributeError, KeyError, IndexError, OSError, RuntimeError, TypeError, ValueError)


def strictly(make: Callable[..., Made], **arguments: Any) -> Made:
    """Call `make` with keyword arguments that it really names. Raises TypeError for one that it would swallow."""
    parameters = inspect.signature(make).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    inspect.Signature(named).bind(**arguments)
    return make(**arguments)


@dataclass(frozen=True)
class Loaded:
    """What `load_model` built. `cache_tokens` is the size of the KV cache, `context_tokens` of one sequence."""

    model: Any
    generator: Any
    tokenizer: Any
    attention: paged_attention.Backend
    context_tokens: int
    cache_tokens: int
    slots: int
    rows: int
    devices: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Weights of the model, norms left aside; embeddings that are the head as well count once."""
        config, modules = self.model.config, self.model.modules
        tied = config.arch.lm.keys["lm_head"] == "model.embed_tokens"
        apart = 0 if tied else config.vocab_size * config.hidden_size
        return int(sum(module.numel() for module in modules[1:]) + apart)

    def close(self) -> None:
        """Free the GPU's memory and stop the sampling threads."""
        if self.generator.max_sampling_threads > 1:
            self.generator.sampling_pool.shutdown()
        self.model.unload()


def load_model(folder: Folder, spec: EngineSpec, options: Options, on_load: OnLoad) -> Loaded:
    """Load the weights and reserve the cache. Raises ModelError, with figures where memory is the reason."""
    attention = paged_attention.install()
    try:
        with folder.readable() as path:
            return _Loader(folder, spec, options, on_load, attention).load(str(path))
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(f"{folder.path} does not fit this GPU: {_memory(options)}; {error}") from error
    except UNREADABLE as error:
        raise ModelError(f"{folder.path} cannot be loaded: {type(error).__name__}: {error}") from error


class _Loader:
    """One load, step by step."""

    def __init__(
        self, folder: Folder, spec: EngineSpec, options: Options, on_load: OnLoad, attention: paged_attention.Backend
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._options = options
        self._on_load = on_load
        self._attention = attention

    def load(self, path: str) -> Loaded:
        """Load from `path`, which ExLlamaV2 reads right."""
        options, slots = self._options, self._spec.slots
        config = self._config(path)
        draft = Folder(Path(options.draft_model)) if options.draft_model else None
        context, cache_tokens = self._sizes(config, draft)
        chunk = min(options.chunk_tokens, _pages(context) * PAGE_TOKENS)
        _limit(config, context, chunk, slots * (options.ahead + 1))
        drafting: dict[str, Any] = {"use_ngram_draft": options.ngram}
        if draft is not None:
            drafting |= self._load_draft(draft, config, cache_tokens)
        model = strictly(ExLlamaV2, config=config)
        cache = self._weights(model, cache_tokens, "layers")
        tokenizer = strictly(ExLlamaV2Tokenizer, config=config)
        generator = strictly(
            ExLlamaV2DynamicGenerator,
            model=model,
            cache=cache,
            tokenizer=tokenizer,
            max_batch_size=slots,
            max_seq_len=context,
            max_chunk_size=chunk,
            max_q_size=options.ahead + 1,
            num_draft_tokens=options.ahead,
            max_sampling_threads=min(SAMPLING_THREADS_MAX, cores()),
            paged=True,
            # Guides are ours: there are no filters whose evaluation could be overlapped.
            filter_background_eval=False,
            **drafting,
        )
        self._adapt(model, generator)
        names = tuple(torch.cuda.get_device_name(device) for device in self._devices())
        spare = options.ahead and PAGE_TOKENS
        context = min(context - options.ahead, cache_tokens - spare)
        return Loaded(
            model, generator, tokenizer, self._attention, context, cache_tokens, slots, config.vocab_size, names
        )

    def _config(self, path: str) -> Any:
        config = strictly(ExLlamaV2Config, model_dir=path)
        known = config.architecture == "LlamaForCausalLM" or config.arch.arch_string != "LlamaForCausalLM"
        if not known:
            raise ModelError(f"{self._folder.path} is a {config.architecture}, which ExLlamaV2 0.3.2 does not know.")
        config.no_flash_attn = False  # paged mode insists, whoever computes attention
        return config

    def _sizes(self, config: Any, draft: Folder | None) -> tuple[int, int]:
        """Tokens of a context, speculation included, and of the whole cache."""
        options = self._options
        context = min(config.max_seq_len, (self._spec.context_tokens or config.max_seq_len) + options.ahead)
        if options.cache_tokens:
            return context, _pages(options.cache_tokens) * PAGE_TOKENS
        values = config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
        token_bytes = values * CACHE_BITS[options.cache] / 8
        weights = self._folder.weights_bytes
        if draft is not None:
            # Its cache has the same length; a small model's tokens are small.
            token_bytes *= 1 + draft.weights_bytes / weights
            weights += draft.weights_bytes
        free = sum(torch.cuda.mem_get_info(device)[0] for device in self._devices())
        room = int((free - weights - RESERVE_BYTES * len(self._devices())) // token_bytes)
        wanted = self._spec.slots * _pages(context) + (1 if options.speculates else 0)
        pages = min(wanted, room // PAGE_TOKENS)
        if pages < (2 if options.speculates else 1):
            raise ModelError(
                f"{self._folder.path} does not fit: weights {_gib(weights)}, {_gib(free)} free on "
                f"{len(self._devices())} GPU, and a page of {PAGE_TOKENS} tokens of {options.cache} cache takes "
                f"{_gib(int(token_bytes * PAGE_TOKENS))}. Use a smaller quantisation or more GPUs (gpu_split)."
            )
        return context, pages * PAGE_TOKENS

    def _devices(self) -> range:
        """GPUs that may be used."""
        count = torch.cuda.device_count()
        if self._options.split_gib is not None:
            return range(min(count, len(self._options.split_gib)))
        return range(count if self._options.gpu_split or self._options.tensor_parallel else 1)

    def _weights(self, model: Any, cache_tokens: int, stage: str) -> Any:
        """Load the weights of a model; return its cache."""
        options, kind = self._options, CACHES[self._options.cache]

        def told(done: int, total: int) -> None:
            self._on_load(LoadProgress(stage, done, total, self._folder.weights_bytes * done // total))

        if options.tensor_parallel:
            if self._attention != "flash-attn":
                raise ModelError("tensor_parallel needs the package flash-attn, built for this torch.")
            strictly(
                model.load_tp,
                gpu_split=options.split_gib,
                callback=told,
                expect_cache_tokens=cache_tokens,
                expect_cache_base=kind,
            )
            return strictly(ExLlamaV2Cache_TP, model=model, base=kind, max_seq_len=cache_tokens)
        if options.gpu_split == "auto":
            cache = strictly(kind, model=model, max_seq_len=cache_tokens, lazy=True)
            strictly(model.load_autosplit, cache=cache, callback=told)
            return cache
        strictly(model.load, gpu_split=options.split_gib, callback=told)
        return strictly(kind, model=model, max_seq_len=cache_tokens)

    def _load_draft(self, folder: Folder, config: Any, cache_tokens: int) -> dict[str, Any]:
        with folder.readable() as path:
            small = self._config(str(path))
            if small.vocab_size != config.vocab_size:
                raise ModelError(
                    f"{folder.path} has {small.vocab_size} tokens, the model {config.vocab_size}: so it cannot guess."
                )
            small.max_seq_len, small.max_input_len = config.max_seq_len, config.max_input_len
            model = strictly(ExLlamaV2, config=small)
            return {"draft_model": model, "draft_cache": self._weights(model, cache_tokens, "draft model")}

    def _adapt(self, model: Any, generator: Any) -> None:
        """Put LoRA adapters on the model; all sequences get them."""
        loras = [
            strictly(ExLlamaV2Lora.from_directory, model=model, directory=str(path), lora_scaling=scale)
            for path, scale in self._options.adapters
        ]
        if loras:
            generator.set_loras(loras)


def _limit(config: Any, context_tokens: int, chunk_tokens: int, batch_tokens: int) -> None:
    """Size the model's buffers for prompts in chunks and for a decode step of the whole batch."""
    config.max_input_len = max(chunk_tokens, batch_tokens)
    config.max_seq_len = max(context_tokens, config.max_input_len)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"


def _memory(options: Options) -> str:
    """Free and total memory of the first GPU, for a message."""
    free, total = torch.cuda.mem_get_info(0)
    return f"{_gib(free)} of {_gib(total)} are free, cache {options.cache}"
