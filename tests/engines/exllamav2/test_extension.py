"""The stand-in against the extension itself, where that is built: what of it computes on the CPU, and what it takes.

Needs no GPU, but a CUDA build of torch and `jobwire engine build`.
"""

from __future__ import annotations

import inspect
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.engines.exllamav2 import cpu
from worker.engines.exllamav2 import requirements

if lacking := cpu.missing() or requirements.lacking():
    pytest.skip(f"ExLlamaV2's extension: {lacking}", allow_module_level=True)
if not (FILE := requirements.extension(os.environ)).is_file():
    pytest.skip(f"ExLlamaV2's extension: {requirements.UNBUILT}", allow_module_level=True)

import torch

from tests.engines.exllamav2 import extension

RANDOM = random.Random(1)


@pytest.fixture(scope="module")
def real() -> Any:
    """The extension, beside the stand-in that other tests may have put in its place."""
    return requirements.extension_module(FILE)


@pytest.mark.parametrize("function", extension.FUNCTIONS, ids=lambda function: function.__name__)
def test_each_function_takes_as_many_arguments(real: Any, function: Any) -> None:
    signature = getattr(real, function.__name__).__doc__.splitlines()[0]
    assert len(re.findall(r"\barg\d+:", signature)) == len(inspect.signature(function).parameters)


def test_matches_are_counted_alike(real: Any) -> None:
    for _ in range(2000):
        a, b = (torch.tensor([RANDOM.choices((0, 1), k=RANDOM.randrange(1, 12))]) for _ in range(2))
        most = RANDOM.randrange(a.shape[1] + 1)
        assert real.count_match(a, b, most) == extension.count_match(a, b, most)


def test_files_are_read_alike(real: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(RANDOM.randbytes(10_000))
    targets = [torch.zeros(2000, dtype=torch.float16) for _ in range(2)]
    for read, target in zip((real.stloader_read, extension.stloader_read), targets, strict=True):
        read(str(file), 123, 4000, target)
    assert targets[0].view(torch.uint8).equal(targets[1].view(torch.uint8))


def drawn(sample_basic: Any, logits: torch.Tensor, top_k: int, top_p: float, number: float) -> int:
    token, probability = torch.empty((1, 1), dtype=torch.long), torch.empty((1, 1))
    none = torch.empty((1, 1), device="meta")
    off = (0.0, 0.0, 1.0, none, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    sample_basic(
        logits.clone(),
        1.0,
        top_k,
        top_p,
        0.0,
        0.0,
        0.0,
        0.0,
        number,
        token,
        probability,
        none,
        none,
        none,
        False,
        [],
        *off,
    )
    return int(token)


def test_the_likeliest_token_is_drawn_alike(real: Any) -> None:
    for seed in range(50):
        logits = torch.randn((1, 1, 320), generator=torch.Generator().manual_seed(seed))
        assert drawn(real.sample_basic, logits, 1, 1.0, 0.7) == drawn(extension.sample_basic, logits, 1, 1.0, 0.7)


def test_its_top_p_is_still_not_the_one_that_the_protocol_promises(real: Any) -> None:
    """Why tokens are not drawn by it. If this fails, it was mended."""
    logits = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05] + [0.0] * 27).log()[None, None]
    assert {drawn(real.sample_basic, logits, 0, 0.5, number / 100) for number in range(100)} == {0, 4}
