"""The functions of ExLlamaV2's compiled extension that a model in float16 needs, in plain torch.

Names and order of arguments are those of its bindings (ext_bindings.cpp). Results are written into the tensors given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def stloader_read(filename: str, offset: int, size: int, target: Tensor) -> None:
    """Read `size` bytes of a file into a tensor."""
    data = np.fromfile(filename, dtype=np.uint8, count=size, offset=offset)
    target.view(-1).view(torch.uint8).copy_(torch.from_numpy(data))


def rms_norm(x: Tensor, w: Tensor, y: Tensor, epsilon: float) -> None:
    """Root mean square norm over the last dimension."""
    wide = x.float()
    y.copy_(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * w.float())


def rope_(
    x: Tensor, sin: Tensor, cos: Tensor, past_len: int, num_heads: int, head_dim: int, offsets: Tensor, neox_style: bool
) -> None:
    """Rotary embedding in place; `offsets` (batch,) are added to `past_len`, or are the whole if that is -1."""
    batch = x.shape[0]
    heads = x.view(batch, -1, num_heads, head_dim)
    first = torch.full((batch,), max(past_len, 0), dtype=torch.long)
    if not offsets.is_meta:
        first = first + offsets.long()
    positions = (first[:, None] + torch.arange(heads.shape[1])).clamp(min=0)
    width = cos.shape[-1]
    sine, cosine = (table.view(-1, width)[positions][:, :, None].float() for table in (sin, cos))
    part = heads[..., :width].float()
    if neox_style:
        turned = torch.cat((-part[..., width // 2 :], part[..., : width // 2]), -1)
    else:
        turned = torch.stack((-part[..., 1::2], part[..., ::2]), -1).flatten(-2)
    heads[..., :width] = (part * cosine + turned * sine).to(x.dtype)


def softcap_(x: Tensor, scale: float) -> None:
    """Squash into (-scale, scale), in place."""
    x.copy_(torch.tanh(x.float() / scale) * scale)


def count_match(a: Tensor, b: Tensor, max_a: int) -> int:
    """How many tokens two rows share at the beginning, of the first `max_a` of `a`."""
    count = min(max_a, b.shape[-1])
    different = (a.reshape(-1)[:count] != b.reshape(-1)[:count]).nonzero()
    return int(different[0]) if different.numel() else count


def cache_rotate(cache: Tensor, order: Tensor, temp: Tensor) -> None:
    """Move pages along one cycle: each place in `order` gets what the next one had."""
    places = order.tolist()
    temp.view(-1).copy_(cache[places[0]])
    for place, source in pairwise(places):
        cache[place] = cache[source]
    cache[places[-1]] = temp.view(-1)


def fast_fill_cpu_ones_bool(tensor: Tensor) -> None:
    """Fill with True."""
    tensor.fill_(True)


def sample_basic(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    top_a: float,
    min_p: float,
    tfs: float,
    typical: float,
    random: float,
    output_tokens: Tensor,
    output_probs: Tensor,
    output_kprobs: Tensor,
    output_ktokens: Tensor,
    logit_filter: Tensor,
    mirostat: bool,
    mirostat_mu: Sequence[float],
    mirostat_tau: float,
    mirostat_eta: float,
    post_temperature: float,
    xtc_mask: Tensor,
    xtc_probability: float,
    xtc_threshold: float,
    min_temp: float,
    max_temp: float,
    temp_exponent: float,
    smoothing_factor: float,
    skew: float,
) -> Sequence[float]:
    """The likeliest token: Jobwire draws by itself, and lets the library warm up with this alone."""
    assert top_k == 1
    output_tokens[:, 0] = logits[:, 0].argmax(-1)
    output_probs[:, 0] = 1.0
    return mirostat_mu


def layer_norm(x: Tensor, w: Tensor, b: Tensor, y: Tensor, epsilon: float) -> None:
    """Layer norm over the last dimension."""
    y.copy_(functional.layer_norm(x.float(), x.shape[-1:], w.float(), None if b.is_meta else b.float(), epsilon))


GROUP = 32
"""Values of a quantised cache that share a scale."""


def fp16_to_q_kv(
    k_in: Tensor,
    k_out: Tensor,
    k_scales: Tensor,
    v_in: Tensor,
    v_out: Tensor,
    v_scales: Tensor,
    batch_size: int,
    offset: int,
    width: int,
    page_size: int,
    cache_seqlens: Tensor,
    block_table: Tensor,
    wbits: int,
) -> None:
    """Quantise the `width` tokens behind each sequence's end, or without pages from `offset` on. Codes are our own."""
    if page_size:
        positions = cache_seqlens.long()[:batch_size, None] + torch.arange(width)
        places = (block_table.long().gather(1, positions // page_size) * page_size + positions % page_size).flatten()
    else:
        places = torch.arange(offset, offset + width)
    for source, codes, scales in ((k_in, k_out, k_scales), (v_in, v_out, v_scales)):
        bits = 8 * codes.shape[-1] // source.shape[-1]
        levels = 2 ** (bits - 1) - 1
        values = source[0, places].float().unflatten(-1, (-1, GROUP))
        scale = values.abs().amax(-1).clamp(min=1e-6).half()
        quantised = ((values / scale.float()[..., None] * levels).round().clamp(-levels, levels) + levels).flatten(-2)
        quantised = quantised.to(torch.uint8)
        codes[0, places] = quantised if bits == 8 else quantised[..., 0::2] + quantised[..., 1::2] * 16
        scales[0, places] = scale.view(len(places), *scales.shape[2:])


def q_to_fp16_kv(
    k_in: Tensor,
    k_out: Tensor,
    k_scales: Tensor,
    v_in: Tensor,
    v_out: Tensor,
    v_scales: Tensor,
    batch_size: int,
    offset: int,
    width: int,
    page_size: int,
    cache_seqlens: Tensor,
    block_table: Tensor,
    wbits: int,
) -> None:
    """Bring back what `fp16_to_q_kv` made of the whole cache, be it needed or not."""
    for codes, target, scales in ((k_in, k_out, k_scales), (v_in, v_out, v_scales)):
        bits = 8 * codes.shape[-1] // target.shape[-1]
        levels = 2 ** (bits - 1) - 1
        quantised = codes if bits == 8 else torch.stack((codes % 16, codes // 16), -1).flatten(-2)
        values = (quantised.float() - levels).unflatten(-1, (-1, GROUP)) / levels
        target.copy_((values * scales.float().view(*values.shape[:-1], 1)).flatten(-2))


FUNCTIONS = (
    stloader_read,
    rms_norm,
    layer_norm,
    rope_,
    softcap_,
    count_match,
    cache_rotate,
    fast_fill_cpu_ones_bool,
    fp16_to_q_kv,
    q_to_fp16_kv,
    sample_basic,
)
