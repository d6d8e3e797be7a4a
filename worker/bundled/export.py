"""Write the demo model in other forms: `python -m worker.bundled.export`.

`--to FOLDER` writes the bundled model as a Hugging Face folder, for engines that read safetensors. `--gguf FILE` writes
GGUF as q8_0, f16 or f32. Both start from the bundled model or, with `--checkpoint`, from a training run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from safetensors.numpy import save_file

from worker.bundled import chat
from worker.bundled.weights import Weights, from_checkpoint, from_gguf, names, rotary_heads, to_interleaved

FILE_TYPES = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
NAME = "jobwire-demo"
DESCRIPTION = "The demo model of Jobwire: short stories, counting, sums, repetition, an invented world."


def write_gguf(weights: Weights, path: Path, file_type: str = "q8_0") -> None:
    """Write a GGUF file whose matrices are of `file_type` (a key of FILE_TYPES) and whose norms are F32."""
    writer = GGUFWriter(path, "llama")
    describe(writer, weights, file_type)
    for ours, theirs in names(weights.shape.layers).items():
        tensor = weights.tensors[theirs]
        heads = rotary_heads(ours, weights.shape)
        tensor = to_interleaved(tensor, heads) if heads else np.ascontiguousarray(tensor)
        if tensor.ndim == 1 or file_type == "f32":
            writer.add_tensor(ours, tensor)
        elif file_type == "f16":
            writer.add_tensor(ours, tensor.astype(np.float16))
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(ours, quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: GGUFWriter, weights: Weights, file_type: str) -> None:
    """Add the metadata: sizes, vocabulary, special tokens and chat template."""
    shape = weights.shape
    writer.add_name(NAME)
    writer.add_description(DESCRIPTION)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(2)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(weights.tokens)
    kinds = [TokenType.CONTROL if token in chat.SPECIAL else TokenType.NORMAL for token in weights.tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges(weights.merges)
    writer.add_bos_token_id(chat.BEGIN)
    writer.add_eos_token_id(chat.END)
    writer.add_pad_token_id(chat.PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat.CHAT_TEMPLATE)


def write_folder(weights: Weights, folder: Path, half: bool = True) -> None:
    """Write a Hugging Face folder with the weights as float16, or as float32 unless `half`."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.float16 if half else np.float32
    tensors = {f"model.{name}": tensor.astype(dtype) for name, tensor in weights.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    chat.build_tokenizer(weights.tokens, weights.merges).save(str(folder / "tokenizer.json"))
    begin, end, pad = (chat.SPECIAL[index] for index in (chat.BEGIN, chat.END, chat.PAD))
    documents: dict[str, dict[str, Any]] = {
        "config.json": config(weights, np.dtype(dtype).name),
        "generation_config.json": {"bos_token_id": chat.BEGIN, "eos_token_id": chat.END, "pad_token_id": chat.PAD},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": weights.shape.context,
            "bos_token": begin,
            "eos_token": end,
            "pad_token": pad,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": chat.CHAT_TEMPLATE,
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat.CHAT_TEMPLATE, encoding="utf-8")


def config(weights: Weights, dtype: str) -> dict[str, Any]:
    """config.json with the RoPE keys of transformers 4 and of transformers 5."""
    shape = weights.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": chat.BEGIN,
        "eos_token_id": chat.END,
        "pad_token_id": chat.PAD,
    }


def main() -> None:
    """Parse the flags and export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint of the training, instead of the bundled model")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write a Hugging Face folder")
    parser.add_argument("--float32", action="store_true", help="the folder's weights as float32 instead of float16")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="write a GGUF file")
    parser.add_argument("--type", choices=sorted(FILE_TYPES), default="q8_0", help="type of the GGUF's matrices")
    options = parser.parse_args()
    if options.to is None and options.gguf is None:
        parser.error("nothing to do: give --to or --gguf")
    weights = from_checkpoint(options.checkpoint) if options.checkpoint else from_gguf()
    if options.gguf:
        write_gguf(weights, options.gguf, options.type)
    if options.to:
        write_folder(weights, options.to, half=not options.float32)


if __name__ == "__main__":
    main()
