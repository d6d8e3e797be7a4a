"""LoRA adapters at start: the output is that of a model into whose weights they were merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.contracts.engines import assert_alike, exported, generation, load, run_one
from tests.engines.exllamav2 import cpu
from worker.engines.base import EngineSpec
from worker.errors import ModelError
from worker.requests import Sampling

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

RANK, ALPHA, LAYERS, HIDDEN = 4, 8, 4, 256
QUESTIONS = ["Count from 1 to 20", "What is 12 + 30?", "Tell me a story about a fox."]
RANKED = Sampling(temperature=0.0, logprobs=5)


def adapter(folder: Path) -> dict[str, object]:
    """Write an adapter of the queries, as PEFT does; return its tensors."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": RANK, "lora_alpha": ALPHA, "fan_in_fan_out": False, "target_modules": ["q_proj"]})
    )
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator).half() * 0.1
        tensors[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=generator).half() * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def merged(folder: Path, tensors: dict[str, object], scale: float) -> Path:
    """The bundled model with the adapter added to its weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(Path(exported().name) / "demo", folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.self_attn.q_proj"
        down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")  # type: ignore[attr-defined]
        added = weights[f"{name}.weight"].float() + scale * ALPHA / RANK * (up @ down)
        weights[f"{name}.weight"] = added.half()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_an_adapter_changes_what_a_merged_model_says(tmp_path: Path, scale: float) -> None:
    tensors = adapter(tmp_path / "adapter")
    model = str(merged(tmp_path / "merged", tensors, scale))
    adapted = load(
        "exllamav2", EngineSpec(slots=2, context_tokens=512, options={"loras": f"{tmp_path / 'adapter'}={scale}"})
    )
    whole = load("exllamav2", EngineSpec(model=model, slots=2, context_tokens=512))
    plain = load("exllamav2", EngineSpec(slots=2, context_tokens=512))
    try:
        texts = []
        for words in QUESTIONS:
            wanted = generation(words, RANKED, max_tokens=30)
            outcome = run_one(adapted, wanted)
            assert_alike(run_one(whole, wanted), outcome)
            texts.append(outcome.text == run_one(plain, wanted).text)
        assert all(texts) if scale == 0.0 else not all(texts)
    finally:
        for engine in (adapted, whole, plain):
            engine.close()


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load("exllamav2", EngineSpec(slots=2, options={"loras": str(tmp_path)}))
