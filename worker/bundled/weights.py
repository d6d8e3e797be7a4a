"""The demo model as data: sizes, weights and vocabulary, read from a checkpoint of the training or from a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, quants
from numpy.typing import NDArray

from worker.bundled.shape import Shape

Array = NDArray[np.float32]
MODEL = Path(__file__).with_name("model.gguf")
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's name of a weight of a layer -> Hugging Face's."""

TOP_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}


@dataclass(frozen=True, slots=True)
class Weights:
    """A model at rest. `tensors` has Hugging Face's names without "model." in front and its row order in float32;
    `tokens` is the vocabulary in the order of ids, `merges` its merges in order, each as "left right"."""

    shape: Shape
    tensors: dict[str, Array]
    tokens: list[str]
    merges: list[str]


def names(layers: int) -> dict[str, str]:
    """Return every weight of a model with this many layers: GGUF's name -> Hugging Face's, both ending in ".weight"."""
    pairs = dict(TOP_NAMES)
    for layer in range(layers):
        pairs |= {f"blk.{layer}.{ours}": f"layers.{layer}.{theirs}" for ours, theirs in LAYER_NAMES.items()}
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in pairs.items()}


def to_interleaved(weight: Array, heads: int) -> Array:
    """Rows of a query or key matrix in GGUF's order, where RoPE turns neighbours instead of two halves.

    Row i of the first half of a head comes to 2i, row i of the second half to 2i + 1.
    """
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def to_halves(weight: Array, heads: int) -> Array:
    """Undo `to_interleaved`."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def rotary_heads(name: str, shape: Shape) -> int:
    """How many heads the rows of this weight (GGUF's name) form, if RoPE turns them, else 0."""
    return shape.heads if ".attn_q." in name else shape.kv_heads if ".attn_k." in name else 0


def from_checkpoint(path: Path) -> Weights:
    """Return the averaged weights of a checkpoint that `train` wrote. Needs torch and tokenizers."""
    import torch
    from tokenizers import Tokenizer

    from worker.bundled import chat

    state = torch.load(path, map_location="cpu")
    tokenizer = Tokenizer.from_str(state["tokenizer"])
    shape = Shape(**state["shape"])
    return Weights(
        shape=shape,
        tensors={name: tensor.numpy() for name, tensor in state["average"].items()},
        tokens=[token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])],
        merges=chat.merges(tokenizer),
    )


def from_gguf(path: Path = MODEL) -> Weights:
    """Return the weights of a demo GGUF file, dequantised. Raises KeyError when a key or a weight is missing."""
    reader = GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    shape = Shape(
        vocabulary=value("llama.vocab_size"),
        hidden=value("llama.embedding_length"),
        layers=value("llama.block_count"),
        heads=value("llama.attention.head_count"),
        kv_heads=value("llama.attention.head_count_kv"),
        ffn=value("llama.feed_forward_length"),
        context=value("llama.context_length"),
        rope_theta=value("llama.rope.freq_base"),
        norm_eps=round(value("llama.attention.layer_norm_rms_epsilon"), 9),
    )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tensors: dict[str, Array] = {}
    for ours, theirs in names(shape.layers).items():
        weight = quants.dequantize(stored[ours].data, stored[ours].tensor_type).astype(np.float32)
        heads = rotary_heads(ours, shape)
        tensors[theirs] = to_halves(weight, heads) if heads else weight
    return Weights(shape, tensors, list(value("tokenizer.ggml.tokens")), list(value("tokenizer.ggml.merges")))
