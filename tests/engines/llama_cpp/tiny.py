"""A tiny Llama with random weights and a SentencePiece vocabulary, as a GGUF file: no real one is small enough."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import TokenType

PIECES = (
    "▁", *"etaoinshrdlucmfwypvbgkjxqz.,!?:;'\"()[]{}<>/|_-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "he", "ll", "hell", "hello", "▁t", "▁the", "▁hello", "▁▁", "in", "er", "▁w", "or", "orld", "▁world", "é", "漢",
)  # fmt: skip
ROLES = ("<|user|>", "<|assistant|>")
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
LAYERS, WIDTH, HEADS, KV_HEADS, FFN, CONTEXT = 2, 64, 4, 2, 128, 512


def write(path: Path, *, add_space_prefix: bool = True, without_bytes: frozenset[int] = frozenset()) -> None:
    """Write the model. `without_bytes` have no token, so characters that need them are unknown."""
    writer = gguf.GGUFWriter(path, "llama")
    tokens = _add_vocabulary(writer, add_space_prefix, without_bytes)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    random, kv_width = np.random.default_rng(0), KV_HEADS * WIDTH // HEADS

    def add(name: str, *shape: int) -> None:
        scale = 1.6 / np.sqrt(shape[-1])
        values = np.ones(shape) if len(shape) == 1 else random.standard_normal(shape) * scale
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", tokens, WIDTH)
    add("output_norm", WIDTH)
    add("output", tokens, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm", WIDTH)
        add(f"{block}.ffn_norm", WIDTH)
        add(f"{block}.attn_q", WIDTH, WIDTH)
        add(f"{block}.attn_k", kv_width, WIDTH)
        add(f"{block}.attn_v", kv_width, WIDTH)
        add(f"{block}.attn_output", WIDTH, WIDTH)
        add(f"{block}.ffn_gate", FFN, WIDTH)
        add(f"{block}.ffn_up", FFN, WIDTH)
        add(f"{block}.ffn_down", WIDTH, FFN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, add_space_prefix: bool, without_bytes: frozenset[int]) -> int:
    tokens = [("<unk>", 0.0, TokenType.UNKNOWN), ("<s>", 0.0, TokenType.CONTROL), ("</s>", 0.0, TokenType.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, TokenType.BYTE) for byte in range(256) if byte not in without_bytes]
    for rank, piece in enumerate(PIECES):
        tokens.append((piece, -2000.0 if len(piece) == 1 else rank - 1000.0, TokenType.NORMAL))
    tokens += [(name, 0.0, TokenType.USER_DEFINED) for name in ROLES]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([name for name, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(add_space_prefix)
    writer.add_chat_template(TEMPLATE)
    writer.add_vocab_size(len(tokens))
    return len(tokens)
