"""The architecture of the demo model in plain torch: a Llama of about three million parameters.

Parameter names and layouts are those of Hugging Face's Llama, without the "model." in front.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.bundled.shape import Shape


class Norm(nn.Module):
    """Root-mean-square normalisation over the last axis, with a weight per channel."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., width) of the same type."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """Attention and a gated feed-forward network, each with a norm ahead and a residual around."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.hidden, shape.kv_heads * shape.head_dim
        self.input_layernorm = Norm(width, shape.norm_eps)
        self.post_attention_layernorm = Norm(width, shape.norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, width, bias=False),
                "k_proj": nn.Linear(width, kv_width, bias=False),
                "v_proj": nn.Linear(width, kv_width, bias=False),
                "o_proj": nn.Linear(width, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, shape.ffn, bias=False),
                "up_proj": nn.Linear(width, shape.ffn, bias=False),
                "down_proj": nn.Linear(shape.ffn, width, bias=False),
            }
        )

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention of x (batch, length, hidden) with itself."""
        heads = [
            self.self_attn[name](x).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        query, key, value = rotate(heads[0], cos, sin), rotate(heads[1], cos, sin), heads[2]
        group = self.shape.heads // self.shape.kv_heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.self_attn["o_proj"](mixed.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (batch, length, hidden) -> the same shape."""
        x = x + self.attention(self.input_layernorm(x), cos, sin)
        y = self.post_attention_layernorm(x)
        gated = functional.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y)
        out: Tensor = x + self.mlp["down_proj"](gated)
        return out


class Llama(nn.Module):
    """The whole model; input and output embeddings are the same matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.norm_eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5 if last else 0.02)

    def features(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> the normalised state (batch, length, hidden) that predicts each next token."""
        cos, sin = rotary_tables(self.shape, ids.shape[1])
        x = self.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x, cos, sin = x.bfloat16(), cos.bfloat16(), sin.bfloat16()
        for layer in self.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, features: Tensor) -> Tensor:
        """features (..., hidden) -> logits (..., vocabulary)."""
        return functional.linear(features, self.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> logits (batch, length, vocabulary) for each next token."""
        return self.logits(self.features(ids))


def rotary_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, head_dim) for the first positions."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-half)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (batch, heads, length, head_dim) turned by its position, first half against second half."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
