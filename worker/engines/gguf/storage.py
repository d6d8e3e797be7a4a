"""How tensors are stored in GGUF files: the types of ggml, and which of them can be turned into float32 here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worker.engines.gguf import blocks
from worker.engines.gguf.blocks import Blocks, Floats

CHUNK_WEIGHTS = 1 << 16
"""Weights decoded together: what they need meanwhile stays in the CPU's cache."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A type of tensor: `block` weights in `size` bytes. `decode` turns blocks into weights, None if unknown."""

    name: str
    block: int
    size: int
    decode: Callable[[Blocks], Floats] | None = None

    def bytes_of(self, weights: int) -> int:
        """Return the bytes that so many weights need, a multiple of `block`."""
        return weights // self.block * self.size

    def read(self, raw: Blocks) -> Floats:
        """Return the weights in these bytes, flat. Not for a type without `decode`."""
        assert self.decode is not None, f"{self.name} is not read here"
        rows = raw.reshape(-1, self.size)
        weights = np.empty((len(rows), self.block), np.float32)
        step = max(CHUNK_WEIGHTS // self.block, 1)
        for start in range(0, len(rows), step):
            weights[start : start + step] = self.decode(rows[start : start + step])
        return weights.reshape(-1)


STORAGE = {
    0: Storage("F32", 1, 4, blocks.f32),
    1: Storage("F16", 1, 2, blocks.f16),
    2: Storage("Q4_0", 32, 18, blocks.q4_0),
    3: Storage("Q4_1", 32, 20, blocks.q4_1),
    6: Storage("Q5_0", 32, 22, blocks.q5_0),
    7: Storage("Q5_1", 32, 24, blocks.q5_1),
    8: Storage("Q8_0", 32, 34, blocks.q8_0),
    9: Storage("Q8_1", 32, 40),
    10: Storage("Q2_K", 256, 84, blocks.q2_k),
    11: Storage("Q3_K", 256, 110, blocks.q3_k),
    12: Storage("Q4_K", 256, 144, blocks.q4_k),
    13: Storage("Q5_K", 256, 176, blocks.q5_k),
    14: Storage("Q6_K", 256, 210, blocks.q6_k),
    15: Storage("Q8_K", 256, 292),
    16: Storage("IQ2_XXS", 256, 66),
    17: Storage("IQ2_XS", 256, 74),
    18: Storage("IQ3_XXS", 256, 98),
    19: Storage("IQ1_S", 256, 50),
    20: Storage("IQ4_NL", 32, 18, blocks.iq4_nl),
    21: Storage("IQ3_S", 256, 110),
    22: Storage("IQ2_S", 256, 82),
    23: Storage("IQ4_XS", 256, 136, blocks.iq4_xs),
    24: Storage("I8", 1, 1),
    25: Storage("I16", 1, 2),
    26: Storage("I32", 1, 4),
    27: Storage("I64", 1, 8),
    28: Storage("F64", 1, 8),
    29: Storage("IQ1_M", 256, 56),
    30: Storage("BF16", 1, 2, blocks.bf16),
    34: Storage("TQ1_0", 256, 54),
    35: Storage("TQ2_0", 256, 66),
    39: Storage("MXFP4", 32, 17),
    40: Storage("NVFP4", 64, 36),
    41: Storage("Q1_0", 128, 18),
}
"""Types by their numbers in a file."""

READABLE = ", ".join(kind.name for kind in STORAGE.values() if kind.decode)
"""The types that are read here, for messages."""
