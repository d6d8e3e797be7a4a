"""ExLlamaV2's own objects, built from spec and options: model, KV cache, tokenizer, generator.

Its constructors silently drop keyword arguments that they do not know, so everything goes through `strictly`.
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
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler

from worker.engines.base import EngineSpec, LoadProgress, OnLoad
from worker.engines.exllamav2 import paged_attention
from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.memory import estimate, gib, whole_pages
from worker.engines.exllamav2.options import PAGE_TOKENS, Options
from worker.engines.machine import cores
from worker.errors import ModelError

Made = TypeVar("Made")

CACHES = {
    "fp16": ExLlamaV2Cache,
    "q8": ExLlamaV2Cache_Q8,
    "q6": ExLlamaV2Cache_Q6,
    "q4": ExLlamaV2Cache_Q4,
}
SAMPLING_THREADS_MAX = 16

WARM_TOKENS = 3
"""Tokens of output per sequence when the engine is warmed up."""

UNREADABLE = (AssertionError, AttributeError, KeyError, IndexError, OSError, RuntimeError, TypeError, ValueError)
"""Errors that the library raises for a model that it cannot read."""


def strictly(make: Callable[..., Made], **arguments: Any) -> Made:
    """Call `make` with keyword arguments that it really names. Raises TypeError for one that it would drop."""
    parameters = inspect.signature(make).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    inspect.Signature(named).bind(**arguments)
    return make(**arguments)


@dataclass(frozen=True)
class Loaded:
    """The result of `load_model`. `cache_tokens` is the size of the KV cache, `context_tokens` of one sequence."""

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
        memory = estimate(folder, options, spec.slots, spec.context_tokens)
        raise ModelError(f"{folder.path} does not fit: {memory.figures}; {_free()}; {error}") from error
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
        """Load from `path`, which ExLlamaV2 reads correctly."""
        options, slots = self._options, self._spec.slots
        config = self._config(path)
        draft = Folder(Path(options.draft_model)) if options.draft_model else None
        context, cache_tokens = self._sizes(config)
        chunk = min(options.chunk_tokens, whole_pages(context))
        _limit(config, context, chunk, slots * (options.ahead + 1))
        drafting: dict[str, Any] = {"use_ngram_draft": options.ngram}
        if draft is not None:
            drafting |= self._load_draft(draft, config, cache_tokens)
        model = strictly(ExLlamaV2, config=config)
        cache = self._weights(model, cache_tokens, "layers")
        tokenizer = strictly(ExLlamaV2Tokenizer, config=config)
        generator = strictly(
            Generator,
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
        self._warm_up(generator, slots, min(chunk, context, cache_tokens) - options.ahead - WARM_TOKENS)
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
        config.no_flash_attn = False  # paged mode insists, even if attention is computed here
        return config

    def _sizes(self, config: Any) -> tuple[int, int]:
        """Return the tokens of a context, speculation included, and of the whole cache."""
        options, asked = self._options, self._spec.context_tokens
        context = min(config.max_seq_len, (asked or config.max_seq_len) + options.ahead)
        if options.cache_tokens:
            return context, whole_pages(options.cache_tokens)
        free = tuple(torch.cuda.mem_get_info(device)[0] for device in self._devices())
        memory = estimate(self._folder, options, self._spec.slots, context - options.ahead, free)
        if not memory.fits:
            raise ModelError(f"{self._folder.path} does not fit: {memory.figures}. {memory.advice(options.cache)}")
        return context, memory.cache_tokens

    def _devices(self) -> list[int]:
        """Return the GPUs that may be used: where one is enough, the first that this process sees."""
        return self._options.gpus(torch.cuda.device_count())

    def _weights(self, model: Any, cache_tokens: int, stage: str) -> Any:
        """Load the weights of a model; return its cache."""
        options, kind = self._options, CACHES[self._options.cache]

        def progress(done: int, total: int) -> None:
            self._on_load(LoadProgress(stage, done, total, self._folder.weights_bytes * done // total))

        if options.tensor_parallel:
            if self._attention != "flash-attn":
                raise ModelError("tensor_parallel needs the package flash-attn, built for this torch.")
            strictly(
                model.load_tp,
                gpu_split=options.split_gib,
                callback=progress,
                expect_cache_tokens=cache_tokens,
                expect_cache_base=kind,
            )
            return strictly(ExLlamaV2Cache_TP, model=model, base=kind, max_seq_len=cache_tokens)
        if options.gpu_split == "auto":
            cache = strictly(kind, model=model, max_seq_len=cache_tokens, lazy=True)
            strictly(model.load_autosplit, cache=cache, callback=progress)
            return cache
        strictly(model.load, gpu_split=options.split_gib, callback=progress)
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

    def _warm_up(self, generator: Any, slots: int, prompt_tokens: int) -> None:
        """Compute as requests will, so that none of them waits for kernels to be chosen and loaded.

        First a prompt of a whole chunk, then a step of a whole batch.
        """
        greedy = strictly(ExLlamaV2Sampler.Settings, token_repetition_penalty=1.0, temperature=1.0, top_k=1, top_p=1.0)
        batch = min(slots, generator.max_pages - (1 if self._options.speculates else 0))
        for done, (jobs, tokens) in enumerate(((1, max(prompt_tokens, 1)), (batch, 1))):
            self._on_load(LoadProgress("warm-up", done, 2, self._folder.weights_bytes))
            for number in range(jobs):
                ids = torch.full((1, tokens), number % generator.model.config.vocab_size, dtype=torch.long)
                budget = WARM_TOKENS + self._options.ahead
                generator.enqueue(
                    strictly(ExLlamaV2DynamicJob, input_ids=ids, max_new_tokens=budget, gen_settings=greedy)
                )
            while generator.num_remaining_jobs():
                generator.iterate()
        generator.reset_page_table()
        self._on_load(LoadProgress("warm-up", 2, 2, self._folder.weights_bytes))

    def _adapt(self, model: Any, generator: Any) -> None:
        """Put LoRA adapters on the model; all sequences get them."""
        loras = [
            strictly(ExLlamaV2Lora.from_directory, model=model, directory=str(path), lora_scaling=scale)
            for path, scale in self._options.adapters
        ]
        if loras:
            generator.set_loras(loras)


class Generator(ExLlamaV2DynamicGenerator):
    """The library's generator, which guesses n-grams only where there are tokens enough to look at."""

    def iterate_ngram_gen(self, results: list[dict[str, object]]) -> Any:
        """Guess tokens, or none in a step in which a sequence is too short: the library reads beyond its beginning."""
        decoding = [job for job in self.active_jobs if job.is_prefill_done()]
        if any(len(job.sequences[0].sequence_ids) < self.max_ngram for job in decoding):
            return None
        return super().iterate_ngram_gen(results)


def _limit(config: Any, context_tokens: int, chunk_tokens: int, batch_tokens: int) -> None:
    """Size the model's buffers for prompts in chunks and for a decode step of the whole batch."""
    config.max_input_len = max(chunk_tokens, batch_tokens)
    config.max_seq_len = max(context_tokens, config.max_input_len)


def _free() -> str:
    """Describe free and total memory of each GPU, for a message."""
    each = [torch.cuda.mem_get_info(device) for device in range(torch.cuda.device_count())]
    return ", ".join(
        f"{gib(free)} of {gib(total)} are free on GPU {number}" for number, (free, total) in enumerate(each)
    )
