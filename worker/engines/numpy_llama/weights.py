"""The weights of a Llama model: the tensors that its GGUF file must have, and the matrices in memory.

Per layer and token a Llama computes: RMS norm, queries, keys and values in one product, rotary positions,
attention, output projection, RMS norm, gated feed-forward (`forward`). Weights that only scale a matrix's inputs
or outputs are multiplied into it here, once: norm weights, and the square root of the head size by which scores are
divided.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.engines.base import LoadProgress, OnLoad
from worker.engines.gguf.file import LLAMA_CPP, Gguf
from worker.engines.gguf.kinds import refuse_part, refuse_supplement
from worker.engines.machine import memory_bytes
from worker.engines.numpy_llama.linear import Floats, Linear
from worker.errors import ModelError

PLAIN: dict[str, tuple[float, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "use_parallel_residual": (False,),
}
"""Metadata that changes a Llama's mathematics, and the values for which it is computed correctly here."""

TENSORS = ("token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight")
LAYER_TENSOR = re.compile(r"blk\.([0-9]{1,9})\.(\w+)\.weight")
LAYER_PARTS = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The sizes of a model; `heads` query heads share `kv_heads` key and value heads of `head_dim` numbers."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    norm_eps: float

    @property
    def queries(self) -> int:
        """Numbers of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers of all key heads together; values are as many."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Weights in the matrices of one layer."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.ffn)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: `qkv` gives queries, keys and values side by side, `gate_up` gate and up projection."""

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(linear.nbytes for linear in (self.qkv, self.output, self.gate_up, self.down))


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """A model in memory. `frequencies` are the angles by which RoPE turns each pair per position, in radians."""

    shape: LlamaShape
    embedding: Linear
    layers: tuple[Layer, ...]
    norm: Floats
    head: Linear
    frequencies: NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices in memory; a head that is tied to the embedding counts once."""
        ends = {id(linear): linear.nbytes for linear in (self.embedding, self.head)}
        return sum(ends.values()) + sum(layer.nbytes for layer in self.layers)


def load_weights(file: Gguf, on_load: OnLoad) -> LlamaWeights:
    """Read a model of architecture "llama". Raises ModelError for anything that would not be computed correctly."""
    shape = read_shape(file)
    tied = "output.weight" not in file.tensors
    _check_memory(file, shape, tied)
    _check_names(file, shape)
    frequencies = _frequencies(file, shape)
    on_load(LoadProgress("weights", 0, shape.layers))
    embedding = Linear(file.read("token_embd.weight", (shape.vocab, shape.hidden)))
    head = embedding if tied else Linear(file.read("output.weight", (shape.vocab, shape.hidden)))
    layers: list[Layer] = []
    loaded = embedding.nbytes + (0 if tied else head.nbytes)
    for number in range(shape.layers):
        layers.append(_layer(file, shape, f"blk.{number}."))
        loaded += layers[-1].nbytes
        on_load(LoadProgress("weights", number + 1, shape.layers, loaded))
    norm = file.read("output_norm.weight", (shape.hidden,))
    return LlamaWeights(shape, embedding, tuple(layers), norm, head, frequencies)


def read_shape(file: Gguf) -> LlamaShape:
    """Read and check the sizes. Raises ModelError for another architecture, variants of it, and impossible sizes."""
    refuse_other_models(file)
    for key, plain in PLAIN.items():
        value = file.metadata.get(f"llama.{key}", plain[0])
        if value not in plain:
            raise _other(file, f"its 'llama.{key}' is {value}, which the numpy engine does not compute")
    heads, hidden = file.uniform("llama.attention.head_count"), file.get("llama.embedding_length", int)
    head_dim = file.get("llama.attention.key_length", int, hidden // heads if heads else 0)
    shape = LlamaShape(
        vocab=len(file.get("tokenizer.ggml.tokens", list)),
        hidden=hidden,
        layers=file.get("llama.block_count", int),
        heads=heads,
        kv_heads=file.uniform("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=file.uniform("llama.feed_forward_length"),
        context=file.get("llama.context_length", int),
        norm_eps=file.get("llama.attention.layer_norm_rms_epsilon", float),
    )
    sizes = (shape.vocab, shape.hidden, shape.layers, heads, shape.kv_heads, head_dim, shape.ffn, shape.context)
    same = {file.get(f"llama.{key}", int, head_dim) for key in ("attention.value_length", "rope.dimension_count")}
    if min(sizes) < 1 or heads % shape.kv_heads or head_dim % 2 or not shape.norm_eps >= 0:
        raise ModelError(f"{file.path}: its sizes are impossible ({shape}). Convert the model again.")
    if same != {head_dim}:
        raise _other(file, f"keys have {head_dim} numbers, values or rotary positions {same - {head_dim}}")
    return shape


def refuse_other_models(file: Gguf) -> None:
    """Raise ModelError for a file that is no whole language model, and for one of another architecture."""
    refuse_supplement(file)
    refuse_part(file)
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        raise _other(file, f"its architecture is {architecture!r}, and the numpy engine runs 'llama'")


def _frequencies(file: Gguf, shape: LlamaShape) -> NDArray[np.float64]:
    """Return the angles of RoPE. Llama 3's scaling comes as a tensor of factors, linear scaling as one number."""
    scaling = file.get("llama.rope.scaling.type", str, "none")
    if scaling not in ("none", "linear"):
        raise _other(file, f"its rotary positions are scaled by {scaling!r}, which the numpy engine does not compute")
    base = file.get("llama.rope.freq_base", float, 10_000.0)
    old = file.get("llama.rope.scale_linear", float, 1.0)
    factor = file.get("llama.rope.scaling.factor", float, old) if scaling == "linear" else old
    if not (base > 0 and factor > 0):
        raise ModelError(f"{file.path}: RoPE's base {base} or factor {factor} is impossible. Convert the model again.")
    frequencies = base ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim) / factor
    if "rope_freqs.weight" in file.tensors:
        frequencies = frequencies / file.read("rope_freqs.weight", (shape.head_dim // 2,))
    return np.asarray(frequencies, np.float64)


def _layer(file: Gguf, shape: LlamaShape, at: str) -> Layer:
    hidden, queries, keys, ffn = shape.hidden, shape.queries, shape.keys, shape.ffn
    norm = file.read(at + "attn_norm.weight", (hidden,))
    wanted = (("q", queries), ("k", keys), ("v", keys))
    qkv = np.concatenate([file.read(f"{at}attn_{name}.weight", (size, hidden)) for name, size in wanted])
    qkv *= norm
    qkv[:queries] *= shape.head_dim**-0.5
    gate_up = np.concatenate([file.read(f"{at}ffn_{name}.weight", (ffn, hidden)) for name in ("gate", "up")])
    gate_up *= file.read(at + "ffn_norm.weight", (hidden,))
    return Layer(
        qkv=Linear(qkv),
        output=Linear(file.read(at + "attn_output.weight", (hidden, queries))),
        gate_up=Linear(gate_up),
        down=Linear(file.read(at + "ffn_down.weight", (hidden, ffn))),
    )


def _check_names(file: Gguf, shape: LlamaShape) -> None:
    """Refuse tensors that would not be used here, such as biases: the results would be silently wrong."""
    for name in file.tensors:
        match = LAYER_TENSOR.fullmatch(name)
        if name not in TENSORS and (match is None or int(match[1]) >= shape.layers or match[2] not in LAYER_PARTS):
            raise _other(file, f"it has the tensor {name!r}, which the numpy engine does not compute with")


def _check_memory(file: Gguf, shape: LlamaShape, tied: bool) -> None:
    """Refuse a model that cannot fit: the kernel would kill the process long after the start."""
    vocabularies = (1 if tied else 2) * shape.vocab * shape.hidden
    needed = 4 * (vocabularies + shape.layers * shape.parameters)
    available = memory_bytes()
    if available is not None and needed > available:
        raise _other(file, f"as float32 it needs {needed >> 20} MiB, and this machine has {available >> 20} MiB")


def _other(file: Gguf, what: str) -> ModelError:
    return ModelError(f"{file.path}: {what}. {LLAMA_CPP}")
