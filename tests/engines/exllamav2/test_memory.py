"""What a model takes of a GPU, reckoned from its folder before anything is loaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from worker.engines.base import EngineSpec
from worker.engines.exllamav2 import gpu_memory, requirements
from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.memory import CacheShape, Memory, estimate, whole_pages
from worker.engines.exllamav2.options import Options
from worker.errors import ModelError

GIB = 1 << 30
# Llama 3.1 8B: a token of its cache takes 2 x 32 layers x 8 heads x 128 x 2 bytes.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131_072,
}


def folder(path: Path, weights_bytes: int, config: dict[str, object] | None = None) -> Folder:
    """A model's folder whose weights are as large as said, and hold nothing."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    (path / "tokenizer.json").write_text("{}")
    for number, size in enumerate((weights_bytes // 2, weights_bytes - weights_bytes // 2)):
        with (path / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(size)
    return Folder(path)


def test_a_token_of_cache_in_each_precision(tmp_path: Path) -> None:
    shape = CacheShape.of(folder(tmp_path / "m", 10))
    assert shape == CacheShape(32, 8, 128, 131_072)
    assert shape.token_bytes("fp16") == 131_072
    # Quantised, with a scale, and one layer in float16 to work on.
    assert shape.token_bytes("q8") == 131_072 * 8.5 / 16 + 4096
    assert shape.token_bytes("q4") == 131_072 * 4.5 / 16 + 4096


def test_shapes_are_read_from_every_way_to_write_them(tmp_path: Path) -> None:
    old = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    assert CacheShape.of(folder(tmp_path / "old", 1, old)) == CacheShape(2, 4, 16, 2048)
    nested = {"text_config": {**old, "head_dim": 32, "num_key_value_heads": 1, "max_position_embeddings": 512}}
    assert CacheShape.of(folder(tmp_path / "nested", 1, nested)) == CacheShape(2, 1, 32, 512)
    with pytest.raises(ModelError, match="num_hidden_layers"):
        CacheShape.of(folder(tmp_path / "bare", 1, {"num_attention_heads": 4}))


def test_all_that_slots_can_use_is_wanted_and_what_fits_is_made(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", 5 * GIB)
    memory = estimate(model, Options(), slots=8, context_tokens=8192, free_bytes=(22 * GIB,))
    assert (memory.weights_bytes, memory.tokens_wanted, memory.fits) == (5 * GIB, 65_536, True)
    # 22 - 5 - 1 GiB are room for 131072 tokens of 128 KiB: twice what is wanted.
    assert (memory.tokens_fitting, memory.cache_tokens) == (131_072, 65_536)
    assert memory.figures == (
        "weights 5.00 GiB, KV cache 8.00 GiB for 65536 tokens, 1.00 GiB to work in; free on 1 GPU: 22.00 GiB"
    )
    smaller = estimate(model, Options(), slots=8, context_tokens=8192, free_bytes=(8 * GIB,))
    assert smaller.fits and smaller.cache_tokens == 16_384


@pytest.mark.parametrize(("cache", "fits"), [("fp16", False), ("q8", False), ("q6", True), ("q4", True)])
def test_a_cache_that_was_asked_for_fits_or_not(tmp_path: Path, cache: str, fits: bool) -> None:
    options = Options(cache=cache, cache_tokens=131_000)  # type: ignore[arg-type]
    memory = estimate(folder(tmp_path / "m", 5 * GIB), options, 64, 0, (13 * GIB,))
    assert memory.tokens_wanted == whole_pages(131_000) == 131_072
    assert (memory.fits, memory.cache_tokens) == (fits, 131_072)
    assert ("--cache q4, which holds" in memory.advice(cache)) == (cache != "q4")
    assert f"--cache-tokens {memory.tokens_fitting}, which would fit" in memory.advice(cache)


def test_weights_alone_may_be_too_much(tmp_path: Path) -> None:
    memory = estimate(folder(tmp_path / "m", 30 * GIB), Options(), 64, 0, (24 * GIB,))
    assert not memory.fits and memory.tokens_fitting == 0
    assert "a smaller quantisation" in memory.advice("fp16") and "--gpu-split auto" in memory.advice("fp16")


def test_several_gpus_are_added_up_and_each_keeps_its_reserve(tmp_path: Path) -> None:
    memory = estimate(folder(tmp_path / "m", 30 * GIB), Options(gpu_split="auto"), 1, 8192, (24 * GIB, 10 * GIB))
    assert memory.reserve_bytes == 2 * GIB and memory.fits
    assert memory.figures.endswith("free on 2 GPU: 24.00 GiB + 10.00 GiB")


def test_a_draft_model_takes_its_part(tmp_path: Path) -> None:
    small = {**LLAMA, "num_hidden_layers": 4}
    draft = folder(tmp_path / "draft", GIB, small)
    options = Options(draft_model=str(draft.path))
    memory = estimate(folder(tmp_path / "m", 5 * GIB), options, 1, 8192)
    assert memory.weights_bytes == 6 * GIB
    assert memory.token_bytes == 131_072 * (1 + 4 / 32)
    # The context and what is guessed beyond it, and a page for guesses.
    assert memory.tokens_wanted == 8192 + 256 + 256
    assert memory.tokens_min == 512


def test_without_a_gpu_the_figures_are_reported(tmp_path: Path) -> None:
    memory = estimate(folder(tmp_path / "m", 5 * GIB), Options(), 1, 1024)
    assert memory == Memory(5 * GIB, 131_072.0, 1024, 256, fixed=False)
    assert memory.figures == "weights 5.00 GiB, KV cache 0.12 GiB for 1024 tokens, 1.00 GiB to work in"


def look(path: Path, monkeypatch: pytest.MonkeyPatch, *free: int, **options: str) -> tuple[bool | None, str, str]:
    monkeypatch.setattr("worker.engines.exllamav2.free_memory", lambda _options: free)
    return gpu_memory(EngineSpec(model=str(path), slots=8, context_tokens=8192, options=options))


def test_the_verdict_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder(tmp_path / "m", 5 * GIB).path
    assert look(model, monkeypatch)[0] is None
    assert look(model, monkeypatch, 22 * GIB)[::2] == (True, "")
    fits, figures, _ = look(model, monkeypatch, 8 * GIB)
    assert fits and figures.endswith("; 65536 tokens of cache could be used")
    fits, figures, advice = look(model, monkeypatch, 5 * GIB)
    assert fits is False and "free on 1 GPU: 5.00 GiB" in figures and "smaller quantisation" in advice
    with pytest.raises(ModelError, match="gpu_split"):
        look(model, monkeypatch, gpu_split="all")


def test_without_cuda_nobody_is_asked() -> None:
    if find_spec("torch") and requirements._torch_has_cuda():
        pytest.skip("this torch has CUDA")
    assert requirements.free_memory(Options()) == ()
