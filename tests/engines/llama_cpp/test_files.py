"""Files as llama.cpp writes and reads them: quantised by itself, and split into parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

from tests.contracts.engines import MODEL
from tests.engines.models import Sizes, ignore_progress, random_weights, write_model
from worker.engines.base import EngineSpec
from worker.engines.gguf.file import open_gguf
from worker.engines.gguf.storage import STORAGE
from worker.engines.gguf.summary import summary_of
from worker.engines.llama_cpp.engine import load
from worker.engines.llama_cpp.library import library, missing
from worker.errors import ModelError

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


def split(folder: Path) -> list[Path]:
    """Write the bundled model in two parts."""
    reader = GGUFReader(MODEL)
    writer = GGUFWriter(folder / "big.gguf", "llama", split_max_tensors=20)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], of)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(folder / "big.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.iterdir())


def open_engine(path: Path) -> None:
    load(EngineSpec(engine="llama_cpp", model=str(path), slots=1, context_tokens=64), ignore_progress).close()


def test_a_split_model_runs_from_its_first_part(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    open_engine(first)
    assert summary_of(open_gguf(first)).weights == summary_of(open_gguf(MODEL)).weights
    with pytest.raises(ModelError, match=f"part 2 of 2.*Give the first part as --model: {first.name}"):
        open_engine(second)
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"{second.name}: the file is not complete.*Download it again"):
        open_engine(first)
    second.unlink()
    with pytest.raises(ModelError, match=f"{second.name} is not beside it"):
        open_engine(first)
