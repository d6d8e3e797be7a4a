"""Models to measure with, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.contracts.engines import MODEL
from tests.engines.exllamav2 import cpu

QUANTISE_TIMEOUT_S = 240
# The converter imports what it needs only for calibration data of one's own.
_CONVERT = """
import importlib.util, os, sys, torch, types
from worker.engines.exllamav2 import requirements
requirements.load_extension(os.environ)
for name in ("fastparquet", "pandas"):
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = types.ModuleType(name)
import exllamav2.conversion.convert_exl2
"""


def bundled(folder: Path) -> Path:
    """The bundled model as a folder in float16."""
    return cpu.export(folder, MODEL)


def random_llama(
    folder: Path, *, hidden: int = 2048, layers: int = 16, heads: int = 16, kv_heads: int = 4, vocab: int = 32_000
) -> Path:
    """A Llama with random weights, and the tokenizer of the bundled model: it says nothing, at the speed of a real one.

    Its size with the defaults is about 0.9 billion parameters, 1.8 GB.
    """
    import torch
    from safetensors.torch import save_file

    source = bundled(folder.with_name(folder.name + "-tokenizer"))
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(source / name, folder / name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    head_dim, inner = hidden // heads, hidden * 11 // 4 // 64 * 64
    config |= {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Any:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).half()

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "lm_head.weight": matrix(vocab, hidden)}
    tensors["model.norm.weight"] = torch.ones(hidden).half()
    for layer in range(layers):
        name = f"model.layers.{layer}."
        for part, rows, columns in (
            ("self_attn.q_proj", heads * head_dim, hidden),
            ("self_attn.k_proj", kv_heads * head_dim, hidden),
            ("self_attn.v_proj", kv_heads * head_dim, hidden),
            ("self_attn.o_proj", hidden, heads * head_dim),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            tensors[f"{name}{part}.weight"] = matrix(rows, columns)
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}{part}.weight"] = torch.ones(hidden).half()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def quantised(source: Path, folder: Path, bits: float = 4.5) -> Path:
    """The model quantised to EXL2 by the library's own converter, with its own calibration text. Needs a GPU."""
    work = folder.with_name(folder.name + "-work")
    work.mkdir()
    asked = ["-i", str(source), "-o", str(work), "-cf", str(folder), "-b", str(bits), "-nr"]
    # Few and short rows: the quality of the measurement does not matter here.
    asked += ["-r", "8", "-l", "512", "-mr", "4", "-ml", "512"]
    line = [sys.executable, "-c", _CONVERT, *asked]
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=QUANTISE_TIMEOUT_S, check=False
    )
    assert (folder / "config.json").is_file(), f"the converter made no model: {done.stdout[-3000:]}"
    for name in ("chat_template.jinja", "generation_config.json"):
        if not (folder / name).is_file():
            shutil.copy(source / name, folder / name)
    return folder
