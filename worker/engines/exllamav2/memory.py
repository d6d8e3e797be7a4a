"""Estimates the GPU memory of a model and its KV cache before anything is loaded. Pure; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.options import PAGE_TOKENS, Options
from worker.errors import ModelError

CACHE_BITS = {"fp16": 16.0, "q8": 8.5, "q6": 6.5, "q4": 4.5}
"""Bits per value, with the scale that groups of 32 share."""

RESERVE_BYTES = 1 << 30
"""Left free on each GPU for activations, logits and the allocator."""


@dataclass(frozen=True)
class CacheShape:
    """The sizes of a model that decide the size of its KV cache."""

    layers: int
    kv_heads: int
    head_dim: int
    context_tokens: int

    @classmethod
    def of(cls, folder: Folder) -> CacheShape:
        """Read it from config.json. Raises ModelError for one without these sizes."""
        config = {**folder.config, **(folder.config.get("text_config") or {})}
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                int(config["num_hidden_layers"]),
                int(config.get("num_key_value_heads") or heads),
                int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                int(config.get("max_position_embeddings") or 2048),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(f"{folder.path / 'config.json'} does not say the model's size: {error!r}.") from error

    def token_bytes(self, cache: str) -> float:
        """Return the bytes of KV cache per token. A quantised cache has one layer in float16 beside it, to work on."""
        values = 2 * self.kv_heads * self.head_dim
        workspace = 0 if cache == "fp16" else values * 2
        return self.layers * values * CACHE_BITS[cache] / 8 + workspace


@dataclass(frozen=True)
class Memory:
    """The memory that one engine needs, and `free_bytes` of each GPU that it may use, empty if unknown.

    `tokens_wanted` of cache were asked for, or without `fixed`, are the most that all slots together can use.
    """

    weights_bytes: int
    token_bytes: float
    tokens_wanted: int
    tokens_min: int
    fixed: bool
    free_bytes: tuple[int, ...] = ()

    @property
    def reserve_bytes(self) -> int:
        """Memory that is left free."""
        return RESERVE_BYTES * max(len(self.free_bytes), 1)

    @property
    def tokens_fitting(self) -> int:
        """Whole pages of cache, in tokens, that the free memory holds beside the weights."""
        room = sum(self.free_bytes) - self.weights_bytes - self.reserve_bytes
        return max(int(room // (self.token_bytes * PAGE_TOKENS)), 0) * PAGE_TOKENS

    @property
    def cache_tokens(self) -> int:
        """The size of the cache that will be made. Only where the free memory is known."""
        return self.tokens_wanted if self.fixed else min(self.tokens_wanted, self.tokens_fitting)

    @property
    def fits(self) -> bool:
        """Whether the weights and the least cache that makes sense, or the one asked for, have room."""
        return (self.tokens_wanted if self.fixed else self.tokens_min) <= self.tokens_fitting

    @property
    def figures(self) -> str:
        """The memory needed, and the memory free, for people."""
        tokens = self.cache_tokens if self.free_bytes and self.fits else self.tokens_wanted
        cache = int(tokens * self.token_bytes)
        needed = (
            f"weights {gib(self.weights_bytes)}, KV cache {gib(cache)} for {tokens} tokens, "
            f"{gib(self.reserve_bytes)} to work in"
        )
        if not self.free_bytes:
            return needed
        each = " + ".join(map(gib, self.free_bytes))
        return f"{needed}; free on {len(self.free_bytes)} GPU: {each}"

    def advice(self, cache: str) -> str:
        """Return what to change if it does not fit, or if the cache is smaller than could be used."""
        ways = []
        if cache != "q4":
            factor = CACHE_BITS[cache] / CACHE_BITS["q4"]
            ways.append(f"--cache q4, which holds {factor:.1f} times as many tokens")
        if self.tokens_fitting >= self.tokens_min:
            ways.append(f"--cache-tokens {self.tokens_fitting}, which would fit")
        else:
            ways.append("a smaller quantisation of the model")
        ways.append("--gpu-split auto, which uses all GPUs")
        return "Try " + ", or ".join(ways) + "."


def estimate(
    folder: Folder, options: Options, slots: int, context_tokens: int, free_bytes: tuple[int, ...] = ()
) -> Memory:
    """Return the memory of a model with these options. `context_tokens` 0 is the model's own. Raises ModelError."""
    shape, draft = CacheShape.of(folder), Folder(Path(options.draft_model)) if options.draft_model else None
    context = min(shape.context_tokens, (context_tokens or shape.context_tokens) + options.ahead)
    weights, token_bytes = folder.weights_bytes, shape.token_bytes(options.cache)
    if draft is not None:
        weights += draft.weights_bytes
        token_bytes += CacheShape.of(draft).token_bytes(options.cache)
    spare = 1 if options.speculates else 0
    wanted = whole_pages(options.cache_tokens) or (slots * (whole_pages(context) // PAGE_TOKENS) + spare) * PAGE_TOKENS
    least = (1 + spare) * PAGE_TOKENS
    return Memory(weights, token_bytes, wanted, least, bool(options.cache_tokens), free_bytes)


def whole_pages(tokens: int) -> int:
    """Return `tokens`, rounded up to whole pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def gib(size: int) -> str:
    """Return a size for people."""
    return f"{size / (1 << 30):.2f} GiB"
