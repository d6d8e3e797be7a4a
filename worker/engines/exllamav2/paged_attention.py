"""Paged attention for ExLlamaV2 where the package flash-attn is not installed.

Its paged mode calls one function, `flash_attn_with_kvcache`, and checks one flag: `install` supplies both. Backends:

flash-attn   the real package, where it can be imported: nothing is replaced
varlen       torch 2.12 or newer on CUDA, sm80 or newer: torch's own FlashAttention-2 reads the pages where they are
gather       CUDA with an older torch: pages are gathered first, then torch's FlashAttention-2
sdpa         everything else (CPU, older GPUs, soft-capped scores): gathered, then scaled dot products with a mask

Shapes: queries (batch, q, heads, dim), caches (pages, page, kv heads, dim), new keys and values (batch, q, kv heads,
dim), lengths (batch,) int32, block table (batch, pages of a sequence) int32. A cache page has 256 tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Backend: TypeAlias = Literal["flash-attn", "varlen", "gather", "sdpa"]
CAPABILITY_MIN = (8, 0)
"""The least compute capability for FlashAttention-2."""


def install() -> Backend:
    """Give ExLlamaV2 paged attention; return which. Call it after importing exllamav2 and before making a generator."""
    from exllamav2 import attn

    if attn.has_flash_attn_with_paged:
        return "flash-attn"
    backend = best_backend()
    attn.flash_attn_with_kvcache = PagedAttention(backend)
    attn.has_flash_attn_with_paged = attn.has_flash_attn_with_window = attn.has_flash_attn_with_softcap = True
    return backend


def best_backend() -> Backend:
    """Return the fastest backend for this torch and all of its GPUs, the package flash-attn left aside."""
    devices = range(torch.cuda.device_count()) if torch.version.cuda else ()
    if not devices or any(torch.cuda.get_device_capability(device) < CAPABILITY_MIN for device in devices):
        return "sdpa"
    return "varlen" if _pages_in_varlen() else "gather"


def _pages_in_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "block_table" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class _Paged:
    """Keys and values in pages, and how many each sequence sees: `window` as flash-attn counts it, -1 is open."""

    keys: Tensor
    values: Tensor
    lengths: Tensor
    table: Tensor
    window: tuple[int, int]
    scale: float
    softcap: float

    @property
    def tokens_max(self) -> int:
        """Tokens that the longest block table reaches."""
        return int(self.table.shape[1] * self.keys.shape[1])


class PagedAttention:
    """`flash_attn_with_kvcache` over one of the backends. Calls with tensors that are not on a GPU always use sdpa."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        # All layers of a pass append at the same places: the lengths they were computed from, queries, and the places.
        self._places: tuple[Tensor, int, Tensor] | None = None

    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        *,
        cache_seqlens: Tensor,
        block_table: Tensor,
        causal: bool = True,
        softmax_scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
    ) -> Tensor:
        """Append `k` and `v` behind the cached tokens, if given; return what the queries see, shaped like `q`."""
        lengths = cache_seqlens
        if k is not None and v is not None:
            places = self._appending(cache_seqlens, block_table, k.shape[1], k_cache.shape[1])
            for cache, new in ((k_cache, k), (v_cache, v)):
                cache.view(-1, *cache.shape[2:]).index_copy_(0, places, new.reshape(-1, *new.shape[2:]))
            lengths = cache_seqlens + k.shape[1]
        window = (window_size[0], 0) if causal else window_size
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        paged = _Paged(k_cache, v_cache, lengths, block_table, window, scale, softcap)
        if softcap or not q.is_cuda or self.backend == "sdpa":
            return _sdpa(q, paged).to(q.dtype)
        return _varlen(q, paged) if self.backend == "varlen" else _gather(q, paged)

    def _appending(self, lengths: Tensor, table: Tensor, count: int, page: int) -> Tensor:
        """Return the flat places in the cache of `count` tokens behind each sequence's."""
        if self._places is not None and self._places[0] is lengths and self._places[1] == count:
            return self._places[2]
        positions = lengths[:, None] + torch.arange(count, device=lengths.device)
        places = (table.gather(1, positions // page).long() * page + positions % page).flatten()
        if lengths.is_cuda:
            # On the CPU the caller counts its lengths up in place, so their identity proves nothing.
            self._places = (lengths, count, places)
        return places


def _steps(count: int, step: int, device: torch.device) -> Tensor:
    return torch.arange(0, (count + 1) * step, step, dtype=torch.int32, device=device)


def _varlen(q: Tensor, paged: _Paged) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    batch, count, heads, dim = q.shape
    out: Any = varlen_attn(
        q.reshape(-1, heads, dim),
        paged.keys,
        paged.values,
        _steps(batch, count, q.device),
        _steps(batch, paged.tokens_max, q.device),
        count,
        paged.tokens_max,
        scale=paged.scale,
        window_size=paged.window,
        enable_gqa=heads != paged.keys.shape[2],
        seqused_k=paged.lengths,
        block_table=paged.table,
    )
    result: Tensor = out.view(batch, count, heads, dim)
    return result


def _gather(q: Tensor, paged: _Paged) -> Tensor:
    batch, count, heads, dim = q.shape
    keys, values = (cache[paged.table.long()].view(-1, *cache.shape[2:]) for cache in (paged.keys, paged.values))
    # Private, and the only way to torch's FlashAttention-2 before it was given a public one.
    attention = torch.ops.aten._flash_attention_forward  # noqa: SLF001
    out = attention(
        q.reshape(-1, heads, dim),
        keys,
        values,
        _steps(batch, count, q.device),
        _steps(batch, paged.tokens_max, q.device),
        count,
        paged.tokens_max,
        0.0,
        paged.window == (-1, 0),
        False,
        scale=paged.scale,
        window_size_left=paged.window[0],
        window_size_right=paged.window[1],
        seqused_k=paged.lengths,
    )
    result: Tensor = out[0].view(batch, count, heads, dim)
    return result


def _sdpa(q: Tensor, paged: _Paged) -> Tensor:
    batch, count, heads, _ = q.shape
    keys, values = (
        cache[paged.table.long()].view(batch, -1, *cache.shape[2:]).transpose(1, 2).float()
        for cache in (paged.keys, paged.values)
    )
    seen = _visible(paged, count, keys.shape[2])
    queries = q.transpose(1, 2).float()
    # Behind a sequence's end a page holds another's leftovers, and zero times infinity is not zero.
    beyond = ~seen.any(2, keepdim=True).transpose(2, 3)
    keys, values = keys.masked_fill(beyond, 0.0), values.masked_fill(beyond, 0.0)
    if paged.softcap:
        group = heads // keys.shape[1]
        scores = queries @ keys.repeat_interleave(group, 1).transpose(2, 3) * (paged.scale / paged.softcap)
        scores = (torch.tanh(scores) * paged.softcap).masked_fill(~seen, float("-inf"))
        out = torch.softmax(scores, -1) @ values.repeat_interleave(group, 1)
    else:
        out = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, scale=paged.scale, enable_gqa=heads != keys.shape[1]
        )
    return out.transpose(1, 2)


def _visible(paged: _Paged, count: int, tokens: int) -> Tensor:
    """Return which keys each query may see: (batch, 1, count, tokens)."""
    lengths = paged.lengths.long()[:, None, None, None]
    query = lengths - count + torch.arange(count, device=lengths.device)[:, None]
    key = torch.arange(tokens, device=lengths.device)
    left, right = paged.window
    seen = (key < lengths) & (key >= 0).expand(count, tokens)
    if right >= 0:
        seen = seen & (key <= query + right)
    if left >= 0:
        seen = seen & (key >= query - left)
    return seen
