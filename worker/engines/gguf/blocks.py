"""Turns quantised blocks of a GGUF file into float32, as ggml's reference code does, bit for bit.

A function takes blocks (blocks, bytes) of one type and returns their weights (blocks, weights). The layouts are those
of ggml-quants.c: a block has float16 scales, and numbers of 2 to 8 bits, whose higher bits are often apart. Tests
compare every function with the package `gguf`, which is not used here: importing it needs PyYAML, and its requirements
bring requests and tqdm as well.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Blocks: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the 16 numbers of IQ4 stand for."""


def f32(blocks: Blocks) -> Floats:
    """Weights as they are."""
    return blocks.view("<f4").astype(np.float32)


def f16(blocks: Blocks) -> Floats:
    """Half precision: also the scales of all other types."""
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks: Blocks) -> Floats:
    """The upper halves of float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def q4_0(blocks: Blocks) -> Floats:
    """32 numbers from -8 to 7, and a scale."""
    numbers = _fields(blocks[:, 2:], 16, 4).view(np.int8) - np.int8(8)
    return f16(blocks[:, :2].copy()) * numbers.astype(np.float32)


def q4_1(blocks: Blocks) -> Floats:
    """32 numbers from 0 to 15, a scale and the smallest weight."""
    numbers = _fields(blocks[:, 4:], 16, 4)
    scales = f16(blocks[:, :4].copy())
    return scales[:, :1] * numbers.astype(np.float32) + scales[:, 1:]


def q5_0(blocks: Blocks) -> Floats:
    """32 numbers from -16 to 15, and a scale."""
    numbers = _with_fifth_bits(blocks[:, 6:], blocks[:, 2:6]).view(np.int8) - np.int8(16)
    return f16(blocks[:, :2].copy()) * numbers.astype(np.float32)


def q5_1(blocks: Blocks) -> Floats:
    """32 numbers from 0 to 31, a scale and the smallest weight."""
    numbers = _with_fifth_bits(blocks[:, 8:], blocks[:, 4:8])
    scales = f16(blocks[:, :4].copy())
    return scales[:, :1] * numbers.astype(np.float32) + scales[:, 1:]


def q8_0(blocks: Blocks) -> Floats:
    """32 signed bytes, and a scale."""
    weights = blocks[:, 2:].view(np.int8).astype(np.float32)
    weights *= f16(blocks[:, :2].copy())
    return weights


def q2_k(blocks: Blocks) -> Floats:
    """16 groups of 16 numbers from 0 to 3; each group has a scale and a minimum of 4 bits."""
    scales, whole = blocks[:, :16], f16(blocks[:, 80:].copy())
    numbers = _fields(blocks[:, 16:80], 32, 2).reshape(-1, 16, 16).astype(np.float32)
    steps = whole[:, :1] * (scales & 15).astype(np.float32)
    least = whole[:, 1:] * (scales >> 4).astype(np.float32)
    return _flat(steps[:, :, None] * numbers - least[:, :, None])


def q3_k(blocks: Blocks) -> Floats:
    """16 groups of 16 numbers from -4 to 3, whose third bits are apart; each group has a scale of 6 bits."""
    numbers = _joined(_fields(blocks[:, 32:96], 32, 2), _fields(blocks[:, :32], 32, 1), 2)
    scales = _joined(_fields(blocks[:, 96:104], 8, 4), _fields(blocks[:, 104:108], 4, 2), 4)
    steps = f16(blocks[:, 108:].copy()) * (scales.view(np.int8) - np.int8(32)).astype(np.float32)
    centred = (numbers.view(np.int8) - np.int8(4)).reshape(-1, 16, 16)
    return _flat(steps[:, :, None] * centred.astype(np.float32))


def q4_k(blocks: Blocks) -> Floats:
    """8 groups of 32 numbers from 0 to 15; each group has a scale and a minimum of 6 bits."""
    return _scaled_k(blocks, _fields(blocks[:, 16:], 32, 4))


def q5_k(blocks: Blocks) -> Floats:
    """8 groups of 32 numbers from 0 to 31, whose fifth bits are apart; scales are those of `q4_k`."""
    return _scaled_k(blocks, _joined(_fields(blocks[:, 48:], 32, 4), _fields(blocks[:, 16:48], 32, 1), 4))


def q6_k(blocks: Blocks) -> Floats:
    """16 groups of 16 numbers from -32 to 31, whose upper two bits are apart; each group has a scale of 8 bits."""
    numbers = _joined(_fields(blocks[:, :128], 64, 4), _fields(blocks[:, 128:192], 32, 2), 4)
    steps = f16(blocks[:, 208:].copy()) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    centred = (numbers.view(np.int8) - np.int8(32)).reshape(-1, 16, 16)
    return _flat(steps[:, :, None] * centred.astype(np.float32))


def iq4_nl(blocks: Blocks) -> Floats:
    """32 numbers that stand for IQ4_VALUES, and a scale."""
    return f16(blocks[:, :2].copy()) * IQ4_VALUES[_fields(blocks[:, 2:], 16, 4)]


def iq4_xs(blocks: Blocks) -> Floats:
    """8 groups of 32 numbers that stand for IQ4_VALUES; each group has a scale of 6 bits."""
    scales = _joined(_fields(blocks[:, 4:8], 1, 4), _fields(blocks[:, 2:4], 1, 2), 4)
    steps = f16(blocks[:, :2].copy()) * (scales.view(np.int8) - np.int8(32)).astype(np.float32)
    numbers = _fields(blocks[:, 8:], 16, 4).reshape(-1, 8, 32)
    return _flat(steps[:, :, None] * IQ4_VALUES[numbers])


def _fields(data: Blocks, run: int, bits: int) -> Blocks:
    """Return the numbers of `bits` bits in `data` (blocks, bytes), flat for each block.

    Of every `run` bytes the lowest bits come first, one number per byte, then the next higher ones.
    """
    shifts = np.arange(0, 8, bits).astype(np.uint8)[:, None]
    fields: Blocks = data.reshape(len(data), -1, 1, run) >> shifts
    fields &= np.uint8((1 << bits) - 1)
    return fields.reshape(len(data), -1)


def _with_fifth_bits(low: Blocks, fifth: Blocks) -> Blocks:
    return _joined(_fields(low, 16, 4), np.unpackbits(fifth, axis=1, bitorder="little"), 4)


def _joined(low: Blocks, high: Blocks, bits: int) -> Blocks:
    """Return numbers whose lowest `bits` bits and whose others were apart."""
    joined: Blocks = low | high << np.uint8(bits)
    return joined


def _scaled_k(blocks: Blocks, numbers: Blocks) -> Floats:
    """Scale the numbers of `q4_k` and `q5_k`: their blocks begin alike."""
    whole, packed = f16(blocks[:, :4].copy()), blocks[:, 4:16]
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([first & 63, (last & 15) | (first >> 2 & 48)])
    minima = np.hstack([second & 63, (last >> 4) | (second >> 2 & 48)])
    steps = whole[:, :1] * scales.astype(np.float32)
    least = whole[:, 1:] * minima.astype(np.float32)
    return _flat(steps[:, :, None] * numbers.reshape(-1, 8, 32).astype(np.float32) - least[:, :, None])


def _flat(groups: NDArray[Any]) -> Floats:
    return groups.reshape(len(groups), -1)
