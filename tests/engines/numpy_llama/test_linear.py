"""Matrix products: right for every shape, and on AVX-512 the same bits for a row whatever else is computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines.models import same_bits
from worker.engines.numpy_llama.linear import BLOCK_COLUMNS, SMALL_PRODUCT, SMALL_ROWS_MIN, Linear, multiply

# The last is too wide to be cut.
SHAPES = [(64, 64), (130, 96), (1, 3), (63, 640), (256, 256), (300, 1900), (96, 2000)]
ROWS = [1, 2, 3, 7, 16, 17, 61, 64, 65, 200]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", ROWS)
def test_products_of_every_shape(shape: tuple[int, int], count: int) -> None:
    matrix, rows = normal(*shape), normal(count, shape[1], seed=1)
    products = Linear(matrix)(rows)
    expected = rows.astype(np.float64) @ matrix.T.astype(np.float64)
    assert products.shape == expected.shape
    np.testing.assert_allclose(products, expected, atol=1e-5 * shape[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_the_matrix_come_back_exactly(shape: tuple[int, int]) -> None:
    matrix = normal(*shape)
    ids = np.random.default_rng(2).integers(0, shape[0], 50)
    np.testing.assert_array_equal(Linear(matrix).output_rows(ids), matrix[ids])


def test_the_matrix_is_kept_once() -> None:
    assert Linear(normal(128, 96)).nbytes == 128 * 96 * 4
    assert Linear(normal(129, 96)).nbytes <= (129 + BLOCK_COLUMNS) * 96 * 4


def test_rows_need_not_be_contiguous() -> None:
    matrix, rows = normal(70, 40), normal(9, 100)
    np.testing.assert_allclose(Linear(matrix)(rows[::2, 30:70]), rows[::2, 30:70] @ matrix.T, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(
    heads=st.integers(1, 3),
    count=st.integers(1, 40),
    inner=st.integers(1, 300) | st.integers(3900, 4100) | st.just(9000),
    width=st.sampled_from([1, 64, 128]),
)
def test_multiply_broadcasts_and_cuts(heads: int, count: int, inner: int, width: int) -> None:
    rows, matrices = normal(2, 1, count, inner), normal(heads, inner, width, seed=1)
    out = np.full((2, heads, count, width), np.nan, np.float32)
    multiply(rows, matrices, out)
    np.testing.assert_allclose(out, np.matmul(rows, matrices), atol=1e-4 * inner)


@same_bits
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if SMALL_ROWS_MIN * shape[1] * 64 <= SMALL_PRODUCT])
def test_a_row_is_the_same_bits_in_any_company(shape: tuple[int, int]) -> None:
    linear, rows = Linear(normal(*shape)), normal(200, shape[1], seed=1)
    alone = np.concatenate([linear(row[None]) for row in rows])
    for count in ROWS:
        for start in (0, 200 - count):
            np.testing.assert_array_equal(linear(rows[start : start + count]), alone[start : start + count])
