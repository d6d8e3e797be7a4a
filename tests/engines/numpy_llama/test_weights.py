"""Loading: what is a Llama that can be computed here, and that everything else is refused by name."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from tests.engines.models import Sizes, Weights, ignore_progress, random_weights, write_model
from worker.engines.base import EngineSpec, LoadProgress
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama import weights as llama_weights
from worker.engines.numpy_llama.engine import load
from worker.engines.numpy_llama.reader import read
from worker.engines.numpy_llama.weights import load_weights, read_shape
from worker.errors import ModelError

NUMBER, REAL, FLAG, STRING, ARRAY = (
    GGUFValueType.UINT32,
    GGUFValueType.FLOAT32,
    GGUFValueType.BOOL,
    GGUFValueType.STRING,
    GGUFValueType.ARRAY,
)
SIZES = Sizes(layers=2)


def written(path: Path, weights: Weights | None = None, **metadata: Any) -> Path:
    """A model whose keys `llama.*` are changed: __ stands for a dot."""
    changes = {f"llama.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return write_model(path / "model.gguf", SIZES, weights or random_weights(SIZES), metadata=changes)


def test_sizes_are_read(tmp_path: Path) -> None:
    shape = read_shape(open_gguf(written(tmp_path)))
    assert (shape.vocab, shape.hidden, shape.layers, shape.heads) == (SIZES.vocab, 96, 2, 6)
    assert (shape.kv_heads, shape.head_dim, shape.ffn, shape.context) == (2, 32, 160, 512)
    assert shape.norm_eps == pytest.approx(1e-5)
    assert (shape.queries, shape.keys) == (192, 64)


def test_sizes_that_follow_from_others_may_be_left_out(tmp_path: Path) -> None:
    sizes = Sizes(hidden=192, heads=6, kv_heads=6, head_dim=32)
    left_out = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count")
    metadata = {f"llama.{key}": None for key in left_out}
    path = write_model(tmp_path / "m.gguf", sizes, random_weights(sizes), metadata=metadata)
    shape = load_weights(open_gguf(path), ignore_progress).shape
    assert (shape.kv_heads, shape.head_dim) == (6, 32)


def test_numbers_may_be_lists_with_one_for_each_layer(tmp_path: Path) -> None:
    lists = {
        "attention__head_count": (ARRAY, [6, 6]),
        "attention__head_count_kv": (ARRAY, [2, 2]),
        "feed_forward_length": (ARRAY, [160, 160]),
    }
    assert read_shape(open_gguf(written(tmp_path, **lists))) == read_shape(open_gguf(written(tmp_path)))


def test_loading_reports_each_layer_and_counts_bytes(tmp_path: Path) -> None:
    reported: list[LoadProgress] = []
    weights = load_weights(open_gguf(written(tmp_path)), reported.append)
    assert [(step.done, step.total) for step in reported] == [(0, 2), (1, 2), (2, 2)]
    assert reported[-1].bytes_loaded == weights.nbytes
    assert weights.head is weights.embedding


def test_weights_are_kept_once_as_float32(tmp_path: Path) -> None:
    sizes = Sizes(hidden=128, heads=2, kv_heads=2, head_dim=64, ffn=192, layers=1)
    path = write_model(tmp_path / "m.gguf", sizes, random_weights(sizes), GGMLQuantizationType.Q8_0)
    weights = load_weights(open_gguf(path), ignore_progress)
    vocab = -(-sizes.vocab // 64) * 64  # whole blocks
    assert weights.nbytes <= 4 * (vocab * 128 + 4 * 128 * 128 + 3 * 128 * 192)


def test_an_untied_head_is_read(tmp_path: Path) -> None:
    sizes = Sizes(tied=False)
    file = open_gguf(write_model(tmp_path / "m.gguf", sizes, random_weights(sizes)))
    weights = load_weights(file, ignore_progress)
    ids = np.arange(sizes.vocab)
    np.testing.assert_array_equal(weights.head.output_rows(ids), random_weights(sizes)["output.weight"])
    np.testing.assert_array_equal(weights.embedding.output_rows(ids), random_weights(sizes)["token_embd.weight"])


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"expert_count": (NUMBER, 8)}, r"'llama\.expert_count' is 8.*llama_cpp"),
        ({"attention__sliding_window": (NUMBER, 4096)}, r"sliding_window' is 4096"),
        ({"attention__causal": (FLAG, False)}, r"causal' is False"),
        ({"logit_scale": (REAL, 0.5)}, r"logit_scale' is 0\.5"),
        ({"rope__scaling__type": (STRING, "yarn")}, r"scaled by 'yarn'.*llama_cpp"),
        ({"rope__dimension_count": (NUMBER, 16)}, r"keys have 32 numbers.*16.*llama_cpp"),
        ({"attention__value_length": (NUMBER, 64)}, r"keys have 32 numbers.*64"),
        ({"rope__freq_base": (REAL, 0.0)}, r"base 0\.0"),
        ({"rope__scale_linear": (REAL, float("nan"))}, r"factor nan"),
        ({"block_count": (NUMBER, 0)}, "sizes are impossible"),
        ({"attention__head_count": (NUMBER, 0)}, "sizes are impossible"),
        ({"attention__head_count_kv": (NUMBER, 4)}, "sizes are impossible"),
        ({"attention__head_count_kv": (ARRAY, [2, 1])}, "head_count_kv' differs between layers.*llama_cpp"),
        ({"feed_forward_length": (ARRAY, [160, 96])}, "feed_forward_length' differs between layers.*llama_cpp"),
        ({"attention__head_count_kv": (ARRAY, [2.0, 2.0])}, "head_count_kv' is not a int"),
        ({"attention__head_count": (ARRAY, ["6", "6"])}, "head_count' is not a int"),
        ({"attention__layer_norm_rms_epsilon": (REAL, -1.0)}, "sizes are impossible"),
        ({"attention__layer_norm_rms_epsilon": (REAL, float("nan"))}, "sizes are impossible"),
        ({"attention__layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon' is missing"),
        ({"embedding_length": (NUMBER, 128)}, r"'token_embd\.weight' has shape"),
        ({"block_count": (NUMBER, 3)}, r"'blk\.2\.attn_norm\.weight' is missing"),
        ({"block_count": (NUMBER, 1)}, r"tensor 'blk\.1\."),
        ({"context_length": None}, "context_length' is missing"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path, metadata: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        load_weights(open_gguf(written(tmp_path, **metadata)), ignore_progress)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"split.no": (NUMBER, 1), "split.count": (NUMBER, 2)}, "part 2 of 2 .*llama_cpp.*--merge"),
        ({"split.no": (NUMBER, 2), "split.count": (NUMBER, 2)}, "part 2 of 2. Download it again"),
        ({"general.type": (STRING, "adapter")}, "adapter.*Give the model itself"),
        ({"general.type": (STRING, "mmproj")}, "projector.*Give the model itself"),
        ({"general.architecture": (STRING, "clip")}, "projector.*Give the model itself"),
    ],
)
def test_what_is_no_whole_model_is_refused_before_it_is_read(
    tmp_path: Path, metadata: dict[str, Any], what: str
) -> None:
    changes = {**metadata, "llama.block_count": None, "tokenizer.ggml.tokens": None}
    path = write_model(tmp_path / "m.gguf", SIZES, random_weights(SIZES), metadata=changes)
    with pytest.raises(ModelError, match=what):
        load(EngineSpec(model=str(path)), ignore_progress)
    with pytest.raises(ModelError, match=what):
        read(EngineSpec(model=str(path)))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    metadata = {"general.architecture": (STRING, "qwen2")}
    path = write_model(tmp_path / "m.gguf", SIZES, random_weights(SIZES), metadata=metadata)
    with pytest.raises(ModelError, match=r"'qwen2', and the numpy engine runs 'llama'.*llama_cpp"):
        load_weights(open_gguf(path), ignore_progress)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.ffn_gate_exps.weight", "blk.0.attn_q_norm.weight"])
def test_tensors_that_nothing_would_use_are_refused(tmp_path: Path, name: str) -> None:
    weights = {**random_weights(SIZES), name: np.zeros(32, np.float32)}
    with pytest.raises(ModelError, match=f"the tensor '{name}'"):
        load_weights(open_gguf(written(tmp_path, weights)), ignore_progress)


def test_a_head_count_that_lies_does_not_take_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_weights, "memory_bytes", lambda: 1 << 20)
    with pytest.raises(ModelError, match=r"needs \d+ MiB, and this machine has 1 MiB.*llama_cpp"):
        load_weights(open_gguf(written(tmp_path, block_count=(NUMBER, 1 << 31))), ignore_progress)


def test_a_head_size_that_lies_does_not_take_memory(tmp_path: Path) -> None:
    size = (NUMBER, 1 << 26)
    sizes = dict.fromkeys(("attention__key_length", "attention__value_length", "rope__dimension_count"), size)
    file = open_gguf(written(tmp_path, **sizes))
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=r"needs \d+ MiB|has shape"):
            load_weights(file, ignore_progress)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_a_system_that_does_not_say_its_memory_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_weights, "memory_bytes", lambda: None)
    assert load_weights(open_gguf(written(tmp_path)), ignore_progress).shape.layers == 2
