"""Files that llama.cpp itself has quantised: the numpy engine's reader finds in them what the package `gguf` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize

from tests.engines.models import Sizes, random_weights, write_model
from worker.engines.gguf.file import open_gguf
from worker.engines.gguf.storage import STORAGE
from worker.engines.llama_cpp.library import library, missing

pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(missing() is not None, reason=str(missing()))]

SIZES = Sizes(hidden=256, layers=2, heads=8, kv_heads=4, ffn=512)
"""Rows that are whole blocks of the K-quants: others would be stored as something else."""

FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18,
    "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip
"""llama.cpp's numbers of kinds of files, by the type of most tensors in them."""


@pytest.mark.parametrize("name", FILE_TYPES)
def test_what_llama_cpp_quantised_is_read(tmp_path: Path, name: str) -> None:
    source, made = tmp_path / "f32.gguf", tmp_path / "quantised.gguf"
    weights = random_weights(SIZES)
    write_model(source, SIZES, weights)
    lib = library()
    params = lib.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[name], 1
    lib.model_quantize(str(source), str(made), params)
    file = open_gguf(made)
    assert name in {STORAGE[tensor.type].name for tensor in file.tensors.values()}
    for tensor in GGUFReader(made).tensors:
        found = file.read(tensor.name, file.tensors[tensor.name].shape)
        np.testing.assert_array_equal(found, dequantize(tensor.data, tensor.tensor_type))
        far = np.abs(found - weights[tensor.name]).mean() / np.abs(weights[tensor.name]).mean()
        assert far < 0.4, tensor.name
