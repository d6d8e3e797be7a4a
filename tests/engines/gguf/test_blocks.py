"""Quantised blocks: each type that llama.cpp writes is decoded bit for bit as the package `gguf` does it."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from worker.engines.gguf.storage import CHUNK_WEIGHTS, READABLE, STORAGE

READ = [number for number, kind in STORAGE.items() if kind.decode is not None]
WANTED = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS"

pytestmark = pytest.mark.timeout(60)


def test_all_that_llama_cpp_writes_is_read() -> None:
    assert set(READABLE.split(", ")) == set(WANTED.split())


def test_every_type_of_the_package_is_known_by_name_and_size() -> None:
    known = {number: (kind.name, kind.block, kind.size) for number, kind in STORAGE.items()}
    assert known == {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGML_QUANT_SIZES}


@pytest.mark.parametrize("number", READ, ids=lambda number: STORAGE[number].name)
def test_any_bytes_are_decoded_bit_for_bit(number: int) -> None:
    """Random bytes hold every number that a block can, and scales that no quantiser writes."""
    kind = STORAGE[number]
    weights = 3 * CHUNK_WEIGHTS + 5 * kind.block
    raw = np.random.default_rng(number).integers(0, 256, kind.bytes_of(weights), np.uint8)
    with np.errstate(all="ignore"):
        found, expected = kind.read(raw), quants.dequantize(raw, GGMLQuantizationType(number)).reshape(-1)
    assert found.dtype == np.float32
    assert found.shape == (weights,)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    np.testing.assert_array_equal(np.isnan(found), ~numbers)
    assert numbers.mean() > 0.9


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0])
def test_what_was_quantised_comes_back_near(kind: GGMLQuantizationType) -> None:
    weights = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    found = STORAGE[int(kind)].read(quants.quantize(weights, kind).reshape(-1))
    assert np.abs(found - weights.reshape(-1)).max() < 0.3
