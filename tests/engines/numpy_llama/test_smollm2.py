"""A real model, SmolLM2-135M: the numpy engine's numbers against the tokens that llama.cpp chose.

The ids were chosen by llama.cpp (cyllama 0.7.0, one thread, pieces of at most 63 tokens), greedily, from each file. Its
kernels for Q4_1 round the inputs to 8 bits, so that file's tokens need not be the likeliest here; F16's have to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize

from tests.engines.models import ignore_progress
from tests.support.models import SMOLLM2, path_of
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama.forward import Chunk, Forward
from worker.engines.numpy_llama.kv_cache import KvCache
from worker.engines.numpy_llama.weights import load_weights
from worker.engines.output.sampling import log_softmax

pytestmark = pytest.mark.timeout(180)

CONTEXT_TOKENS = 256
PIECE_TOKENS = 63
LOGPROB_BEHIND_MAX = 0.5
NOT_FIRST_MAX = 2

# fmt: off
PROMPT = [  # "What is a job queue, and why would a server of language models need one?", in the model's template
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 1780, 314, 253, 2288, 18157, 28, 284, 1701, 736, 253, 6064, 282, 1789, 2859, 737, 582, 47, 2, 198,
    1, 520, 9531, 198,
]
Q4_1_IDS = [
    49, 2288, 18157, 314, 253, 940, 2678, 338, 2518, 253, 6064, 282, 1789, 2859, 288, 4249, 284, 4511, 260, 3124, 282,
    480, 1038, 1789, 2859, 30, 657, 506, 253, 970, 327, 601, 288, 980, 284, 6524, 260, 940, 502, 5051, 28, 527, 314,
    1129, 6171, 411, 480, 1038, 2859, 30, 669, 940, 2678, 314, 1217, 253, 2288,
]
F16_IDS = [
    49, 2288, 18157, 314, 253, 940, 2678, 338, 2518, 253, 6064, 282, 1789, 2859, 288, 4249, 284, 4511, 260, 3124, 282,
    480, 1038, 1789, 2859, 30, 669, 940, 2678, 314, 1217, 253, 2288, 18157, 28, 527, 314, 253, 3854, 282, 2288, 3401,
    338, 416, 325, 804, 288, 4249, 284, 4511, 940, 30, 198, 198, 788, 260, 2468,
]
# fmt: on


def as_f16(source: Path, made: Path) -> Path:
    """Write a copy of a GGUF file with its matrices as F16."""
    reader = GGUFReader(source)
    writer = GGUFWriter(made, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], of)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights if weights.ndim == 1 else weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def behind_first(path: Path, chosen: list[int]) -> list[float]:
    """How far each chosen token's log-probability is behind the likeliest one's, when the others are fed to it."""
    weights = load_weights(open_gguf(path), ignore_progress)
    shape = weights.shape
    forward = Forward(weights, KvCache(shape.layers, 1, shape.kv_heads, CONTEXT_TOKENS, shape.head_dim), CONTEXT_TOKENS)
    for start in range(0, len(PROMPT), PIECE_TOKENS):
        hidden = forward([Chunk(0, start, PROMPT[start : start + PIECE_TOKENS])])
    behind = []
    for number, token in enumerate(chosen):
        logprobs = log_softmax(forward.logits(hidden))[0]
        behind.append(float(logprobs.max() - logprobs[token]))
        hidden = forward([Chunk(0, len(PROMPT) + number, [token])])
    return behind


def test_q4_1_ranks_the_tokens_of_llama_cpp_first_or_nearly() -> None:
    behind = behind_first(path_of(SMOLLM2), Q4_1_IDS)
    assert len(behind) == 57
    assert max(behind) <= LOGPROB_BEHIND_MAX
    assert sum(gap > 0 for gap in behind) <= NOT_FIRST_MAX


def test_f16_chooses_the_tokens_of_llama_cpp(tmp_path: Path) -> None:
    """Every chosen token is the likeliest after those before it, so a greedy answer has exactly these ids."""
    path = as_f16(path_of(SMOLLM2), tmp_path / "f16.gguf")
    assert {tensor.tensor_type for tensor in GGUFReader(path).tensors} == {
        GGMLQuantizationType.F16,
        GGMLQuantizationType.F32,
    }
    assert behind_first(path, F16_IDS) == [0.0] * 57
