"""Matrix products, cut so that OpenBLAS computes them with its kernels for small matrices where it has them.

On AVX-512 these kernels need no copy of the operands and are up to twice as fast, for products of at most SMALL_PRODUCT
multiplications. They also add in the same order however many rows there are: a row's result does not depend on what
else is in the batch, so neither does the text of a sequence. On other machines nothing is cut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.engines.machine import has_avx512

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS uses its kernels for small matrices."""

BLOCK_COLUMNS = 64
"""Columns of a matrix that is cut."""

SMALL_ROWS_MIN = 8
"""Matrices are not cut if fewer rows than these fit a small product: larger kernels are as fast then."""


def multiply(rows: Floats, matrices: Floats, out: Floats) -> None:
    """Store rows (..., m, k) times matrices (..., k, n) in `out` (..., m, n); leading dimensions are broadcast.

    Matrices should be narrow, or there is nothing to be gained.
    """
    count, size = rows.shape[-2], matrices.shape[-2] * matrices.shape[-1]
    height = SMALL_PRODUCT // size
    if height < 2 or not has_avx512() or 2 <= count <= height:
        np.matmul(rows, matrices, out=out)
    elif count == 1:
        # One row alone would be another kernel, which is slower and adds in another order.
        out[...] = np.matmul(np.repeat(rows, 2, axis=-2), matrices)[..., :1, :]
    else:
        # Pieces of equal height, but for the last, which may overlap the one before rather than be a single row.
        height = -(-count // -(-count // height))
        for start in range(0, count, height):
            piece = slice(min(start, count - 2), start + height)
            np.matmul(rows[..., piece, :], matrices, out=out[..., piece, :])


class Linear:
    """A matrix (outputs, inputs) to multiply rows with. It is kept once, in blocks of columns."""

    def __init__(self, matrix: Floats) -> None:
        self.outputs, self.inputs = matrix.shape
        self._small = has_avx512() and SMALL_ROWS_MIN * self.inputs * BLOCK_COLUMNS <= SMALL_PRODUCT
        width = BLOCK_COLUMNS if self._small else self.outputs
        padded = np.zeros((-(-self.outputs // width) * width, self.inputs), np.float32)
        padded[: self.outputs] = matrix
        # (blocks, inputs, width)
        self._blocks: Floats = np.ascontiguousarray(padded.reshape(-1, width, self.inputs).swapaxes(1, 2))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._blocks.nbytes

    def __call__(self, rows: Floats) -> Floats:
        """Return the products (rows, outputs) of rows (rows, inputs)."""
        if len(rows) == 1 and self._small:
            return self(np.concatenate((rows, rows)))[:1]  # see multiply; this way nothing is copied back
        count, (blocks, _, width) = len(rows), self._blocks.shape
        products = np.empty((count, blocks, width), np.float32)
        multiply(rows, self._blocks, products.swapaxes(0, 1))
        return products.reshape(count, -1)[:, : self.outputs]

    def output_rows(self, ids: Ids) -> Floats:
        """Return rows `ids` of the matrix, (ids, inputs): embeddings, if it is the vocabulary's."""
        width = self._blocks.shape[2]
        return self._blocks[ids // width, :, ids % width]
