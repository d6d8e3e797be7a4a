"""Small Llama models with random weights, written with the `gguf` package, and what they must compute.

`Reference` is an independent oracle: a whole text at once, head by head, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType, quants
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from worker.engines.base import LoadProgress
from worker.engines.machine import has_avx512
from worker.engines.prompt.bpe import CHARACTERS

Weights = dict[str, NDArray[np.float32]]

SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
BEGIN, END, USER, ASSISTANT = range(4)
MERGES = ("t h", "th e", "Ġ the", "i n", "Ġ a", "a n", "an d", "1 2", "Ã ©", "Ġ Ġ")
TOKENS = (*SPECIAL, *CHARACTERS, *(merge.replace(" ", "") for merge in MERGES))
TYPES = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL))
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model. The defaults divide into nothing evenly but what must."""

    vocab: int = len(TOKENS)
    hidden: int = 96
    layers: int = 2
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 160
    context: int = 512
    freq_base: float = 10_000.0
    eps: float = 1e-5
    tied: bool = True


def random_weights(sizes: Sizes, seed: int = 0) -> Weights:
    """Weights under GGUF's names, scaled so that logits spread over a few units."""
    rng = np.random.default_rng(seed)

    def matrix(outputs: int, inputs: int) -> NDArray[np.float32]:
        return (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return rng.uniform(0.5, 1.5, sizes.hidden).astype(np.float32)

    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    weights = {"token_embd.weight": matrix(sizes.vocab, sizes.hidden) * 3, "output_norm.weight": norm()}
    if not sizes.tied:
        weights["output.weight"] = matrix(sizes.vocab, sizes.hidden) * 3
    for layer in range(sizes.layers):
        at = f"blk.{layer}."
        weights |= {
            at + "attn_norm.weight": norm(),
            at + "attn_q.weight": matrix(queries, sizes.hidden) * 2,
            at + "attn_k.weight": matrix(keys, sizes.hidden) * 2,
            at + "attn_v.weight": matrix(keys, sizes.hidden),
            at + "attn_output.weight": matrix(sizes.hidden, queries),
            at + "ffn_norm.weight": norm(),
            at + "ffn_gate.weight": matrix(sizes.ffn, sizes.hidden),
            at + "ffn_up.weight": matrix(sizes.ffn, sizes.hidden),
            at + "ffn_down.weight": matrix(sizes.hidden, sizes.ffn),
        }
    return weights


def stored(weights: Weights, kind: GGMLQuantizationType) -> Weights:
    """The weights as they are after a file has kept its matrices as `kind`."""
    return {
        name: tensor if tensor.ndim == 1 else quants.dequantize(quants.quantize(tensor, kind), kind)
        for name, tensor in weights.items()
    }


def write_model(
    path: Path,
    sizes: Sizes,
    weights: Weights,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a GGUF file. `metadata` changes keys: a value is (type, value), None leaves the key out."""
    entries = {**_metadata(sizes), **(metadata or {})}
    writer = GGUFWriter(path, "llama")
    for key, entry in entries.items():
        if entry is not None:
            writer.kv_data[0][key] = GGUFValue(entry[1], entry[0])
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(sizes: Sizes) -> dict[str, tuple[GGUFValueType, Any]]:
    number, real, flag, text, array = (
        GGUFValueType.UINT32,
        GGUFValueType.FLOAT32,
        GGUFValueType.BOOL,
        GGUFValueType.STRING,
        GGUFValueType.ARRAY,
    )
    return {
        "general.name": (text, "random"),
        "llama.vocab_size": (number, sizes.vocab),
        "llama.context_length": (number, sizes.context),
        "llama.embedding_length": (number, sizes.hidden),
        "llama.block_count": (number, sizes.layers),
        "llama.feed_forward_length": (number, sizes.ffn),
        "llama.attention.head_count": (number, sizes.heads),
        "llama.attention.head_count_kv": (number, sizes.kv_heads),
        "llama.attention.key_length": (number, sizes.head_dim),
        "llama.attention.value_length": (number, sizes.head_dim),
        "llama.rope.dimension_count": (number, sizes.head_dim),
        "llama.rope.freq_base": (real, sizes.freq_base),
        "llama.attention.layer_norm_rms_epsilon": (real, sizes.eps),
        "tokenizer.ggml.model": (text, "gpt2"),
        "tokenizer.ggml.pre": (text, "qwen2"),
        "tokenizer.ggml.tokens": (array, list(TOKENS)),
        "tokenizer.ggml.token_type": (array, [int(kind) for kind in TYPES]),
        "tokenizer.ggml.merges": (array, list(MERGES)),
        "tokenizer.ggml.bos_token_id": (number, BEGIN),
        "tokenizer.ggml.eos_token_id": (number, END),
        "tokenizer.ggml.add_bos_token": (flag, True),
        "tokenizer.chat_template": (text, CHAT_TEMPLATE),
    }


class Reference:
    """The Llama of the paper and of GGUF's conventions (RoPE turns neighbours), as plainly as it can be written."""

    def __init__(self, sizes: Sizes, weights: Weights, frequency_factors: NDArray[np.float32] | None = None) -> None:
        self._sizes = sizes
        self._weights = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
        half = np.arange(0, sizes.head_dim, 2) / sizes.head_dim
        self._frequencies = sizes.freq_base**-half / (1.0 if frequency_factors is None else frequency_factors)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Logits after each token, shape (tokens, vocab)."""
        sizes, weights = self._sizes, self._weights
        hidden = weights["token_embd.weight"][list(tokens)]
        for layer in range(sizes.layers):
            hidden = hidden + self._attention(f"blk.{layer}.", hidden)
            hidden = hidden + self._feed_forward(f"blk.{layer}.", hidden)
        head = weights.get("output.weight", weights["token_embd.weight"])
        return np.asarray(self._norm(hidden, "output_norm.weight") @ head.T)

    def _norm(self, hidden: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        mean = (hidden**2).mean(axis=1, keepdims=True)
        return np.asarray(hidden / np.sqrt(mean + self._sizes.eps) * self._weights[name])

    def _attention(self, at: str, hidden: NDArray[np.float64]) -> NDArray[np.float64]:
        sizes, weights = self._sizes, self._weights
        normed = self._norm(hidden, at + "attn_norm.weight")
        queries, keys, values = (normed @ weights[f"{at}attn_{name}.weight"].T for name in "qkv")
        mixed = np.zeros_like(queries)
        for head in range(sizes.heads):
            shared = head // (sizes.heads // sizes.kv_heads)
            mine = slice(head * sizes.head_dim, (head + 1) * sizes.head_dim)
            theirs = slice(shared * sizes.head_dim, (shared + 1) * sizes.head_dim)
            query, key = self._turned(queries[:, mine]), self._turned(keys[:, theirs])
            scores = query @ key.T / np.sqrt(sizes.head_dim)
            scores[np.triu_indices(len(hidden), 1)] = -np.inf
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, mine] = shares @ values[:, theirs] / shares.sum(axis=1, keepdims=True)
        return np.asarray(mixed @ weights[at + "attn_output.weight"].T)

    def _turned(self, heads: NDArray[np.float64]) -> NDArray[np.float64]:
        angles = np.outer(np.arange(len(heads)), self._frequencies)
        left, right = heads[:, 0::2], heads[:, 1::2]
        turned = np.empty_like(heads)
        turned[:, 0::2] = left * np.cos(angles) - right * np.sin(angles)
        turned[:, 1::2] = left * np.sin(angles) + right * np.cos(angles)
        return turned

    def _feed_forward(self, at: str, hidden: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = self._weights
        normed = self._norm(hidden, at + "ffn_norm.weight")
        gate, up = (normed @ weights[f"{at}ffn_{name}.weight"].T for name in ("gate", "up"))
        return np.asarray((gate / (1 + np.exp(-gate)) * up) @ weights[at + "ffn_down.weight"].T)


def ignore_progress(_progress: LoadProgress) -> None:
    """For tests that do not care how far loading is."""


def _adds_in_the_same_order() -> bool:
    rng = np.random.default_rng(0)
    for inner in (32, 200, 640):
        rows, matrix = (rng.standard_normal((24, inner), np.float32), rng.standard_normal((inner, 64), np.float32))
        if any(not np.array_equal(rows[:count] @ matrix, (rows @ matrix)[:count]) for count in range(2, 24)):
            return False
    return has_avx512()


same_bits = pytest.mark.skipif(
    not _adds_in_the_same_order(), reason="this CPU's BLAS adds in another order for other numbers of rows"
)
"""For tests of exact equality: numpy by itself must give a row the same bits in products of any number of rows."""
