"""The same weights as GGUF and as a Hugging Face folder: equal logits, by arithmetic that is written out here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants
from numpy.typing import NDArray
from tokenizers import Tokenizer

from worker.bundled.shape import Shape
from worker.bundled.weights import MODEL, Weights, from_gguf, names, to_halves, to_interleaved
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama.forward import Chunk, Forward
from worker.engines.numpy_llama.kv_cache import KvCache
from worker.engines.numpy_llama.weights import load_weights

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="the export needs safetensors, of the train extra")
export = pytest.importorskip("worker.bundled.export")

Array = NDArray[np.float32]
PROMPT = "<|begin|><|user|>Count from 7 to 120<|end|><|assistant|>7 8 9 10 11"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a Hugging Face folder in float32."""
    path: Path = tmp_path_factory.mktemp("export") / "model"
    export.write_folder(from_gguf(), path, half=False)
    return path


def turn_halves(x: Array, theta: float) -> Array:
    """RoPE as Hugging Face orders it: x (length, heads, head_dim), first half against second half."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def turn_neighbours(x: Array, theta: float) -> Array:
    """RoPE as GGUF's llama orders it: even channels against odd channels."""
    half = x.shape[-1] // 2
    z = x.astype(np.float64).reshape(*x.shape[:-1], half, 2) @ np.array([1, 1j])
    z = z * np.exp(1j * np.arange(len(x))[:, None, None] * theta ** (-np.arange(half) / half))
    return np.stack([z.real, z.imag], -1).reshape(x.shape).astype(np.float32)


def logits(tensors: dict[str, Array], shape: Shape, ids: list[int], neighbours: bool) -> Array:
    """Logits (length, vocabulary) of a Llama whose weights have Hugging Face's names."""

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.norm_eps) * tensors[name]

    turn = turn_neighbours if neighbours else turn_halves
    x = tensors["embed_tokens.weight"][ids]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(shape.layers):
        own = f"layers.{layer}."
        y = norm(x, own + "input_layernorm.weight")
        projected = (y @ tensors[f"{own}self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k, v = (rows.reshape(len(ids), -1, shape.head_dim) for rows in projected)
        q, k = turn(q, shape.rope_theta), turn(k, shape.rope_theta)
        k, v = (np.repeat(t, shape.heads // shape.kv_heads, 1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(shape.head_dim) + mask
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", chances / chances.sum(-1, keepdims=True), v).reshape(len(ids), -1)
        x = x + mixed @ tensors[own + "self_attn.o_proj.weight"].T
        y = norm(x, own + "post_attention_layernorm.weight")
        gate, up = (y @ tensors[f"{own}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + gate / (1 + np.exp(-gate)) * up @ tensors[own + "mlp.down_proj.weight"].T
    out: Array = norm(x, "norm.weight") @ tensors["embed_tokens.weight"].T
    return out


def gguf_logits(path: Path, ids: list[int]) -> Array:
    """Logits of a GGUF file straight from its tensors, in GGUF's own order."""
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    shape = from_gguf(path).shape
    tensors = {
        theirs: quants.dequantize(stored[ours].data, stored[ours].tensor_type).astype(np.float32)
        for ours, theirs in names(shape.layers).items()
    }
    return logits(tensors, shape, ids, neighbours=True)


def folder_logits(folder: Path, ids: list[int]) -> Array:
    """Logits of a Hugging Face folder, whose sizes come from its config.json."""
    config = json.loads((folder / "config.json").read_text())
    shape = Shape(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        ffn=config["intermediate_size"],
        context=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )
    loaded = safetensors_numpy.load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor.astype(np.float32) for name, tensor in loaded.items()}
    return logits(tensors, shape, ids, neighbours=False)


def prompt_ids(folder: Path) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPT).ids
    return ids


def test_folder_and_gguf_give_the_same_logits(folder: Path) -> None:
    ids = prompt_ids(folder)
    ours, theirs = gguf_logits(MODEL, ids), folder_logits(folder, ids)
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs(ours).max() > 5, "a trained model is sure of something"


def test_folder_and_numpy_engine_give_the_same_logits(folder: Path) -> None:
    ids = prompt_ids(folder)
    weights = load_weights(open_gguf(MODEL), lambda _: None)
    shape = weights.shape
    forward = Forward(weights, KvCache(shape.layers, 1, shape.kv_heads, 64, shape.head_dim), 64)
    ours = forward.logits(np.concatenate([forward([Chunk(0, index, [token])]) for index, token in enumerate(ids)]))
    assert np.abs(ours - folder_logits(folder, ids)).max() < 1e-3


def test_order_of_the_rows_matters(folder: Path) -> None:
    # The comparison above would be worth nothing if a missing permutation did not show.
    weights = from_gguf()
    ids = prompt_ids(folder)
    wrong = logits(weights.tensors, weights.shape, ids, neighbours=True)
    assert np.abs(wrong - gguf_logits(MODEL, ids)).max() > 0.1


def test_half_precision_folder_is_close(tmp_path: Path, folder: Path) -> None:
    export.write_folder(from_gguf(), tmp_path)
    ids = prompt_ids(folder)
    ours, theirs = folder_logits(folder, ids), folder_logits(tmp_path, ids)
    assert np.abs(ours - theirs).max() < 0.1
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_model_counts_from_the_folder(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    best = folder_logits(folder, prompt_ids(folder))[-4:].argmax(-1)
    assert tokenizer.decode([int(index) for index in best]) == " 11 "


@pytest.mark.parametrize("file_type", ["f32", "f16", "q8_0"])
def test_gguf_of_every_type_keeps_the_weights(tmp_path: Path, file_type: str) -> None:
    path = tmp_path / "model.gguf"
    weights = from_gguf()
    export.write_gguf(weights, path, file_type)
    again = from_gguf(path)
    assert (again.shape, again.tokens, again.merges) == (weights.shape, weights.tokens, weights.merges)
    for name, tensor in weights.tensors.items():
        # Dequantised Q8_0 is a byte times a half: exact in Q8_0 and F32, rounded to 11 bits in F16.
        limit = 0 if file_type == "f32" else 2e-3 * np.abs(tensor).max()
        assert np.abs(again.tensors[name] - tensor).max() <= limit, name


def test_config_speaks_to_both_generations_of_readers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["rope_scaling"] is None and config["rope_parameters"]["rope_type"] == "default"
    assert config["tie_word_embeddings"] is True
    assert config["head_dim"] == 64


def test_folder_is_complete(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer_config["chat_template"] == (folder / "chat_template.jinja").read_text()


def test_ids_are_the_same_in_both_forms(folder: Path) -> None:
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert {token: index for index, token in enumerate(from_gguf().tokens)} == vocabulary


def test_permutations_undo_each_other() -> None:
    weight = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    assert (to_halves(to_interleaved(weight, 2), 2) == weight).all()
    assert to_interleaved(weight, 2)[:4, 0].tolist() == [0, 6, 3, 9]


def test_missing_weight_is_named(tmp_path: Path) -> None:
    weights = from_gguf()
    kept = {name: tensor for name, tensor in weights.tensors.items() if name != "norm.weight"}
    with pytest.raises(KeyError, match=r"norm\.weight"):
        export.write_gguf(Weights(weights.shape, kept, weights.tokens, weights.merges), tmp_path / "x.gguf")
