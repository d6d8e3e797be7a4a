"""The tokenizer of a GGUF file: byte-level BPE, from the file's metadata."""

from __future__ import annotations

import numpy as np

from worker.engines.gguf.file import LLAMA_CPP, Gguf
from worker.engines.prompt.bpe import NORMAL, Bpe
from worker.engines.prompt.pretokenizers import PRE_TOKENIZERS
from worker.errors import ModelError

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Keys of the tokens that end a sequence; the first that the file has names the end token in chat templates."""


def load_tokenizer(file: Gguf) -> Bpe:
    """Make the tokenizer of a GGUF file. Raises ModelError when its metadata is not that of a byte-level BPE."""
    model = file.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise ModelError(
            f"{file.path}: its tokenizer is of type {model!r}, and the numpy engine has byte-level BPE ('gpt2') only. "
            + LLAMA_CPP
        )
    name = file.get("tokenizer.ggml.pre", str, "default")
    rule = PRE_TOKENIZERS.get(name)
    if rule is None:
        raise ModelError(
            f"{file.path}: how its tokenizer cuts words, {name!r}, is not known to the numpy engine. {LLAMA_CPP}"
        )
    tokens = file.get("tokenizer.ggml.tokens", list)
    types = file.get("tokenizer.ggml.token_type", np.ndarray, np.full(len(tokens), NORMAL))
    if len(types) != len(tokens):
        raise ModelError(f"{file.path}: {len(tokens)} tokens have {len(types)} types. Convert the model again.")
    ends = [_token_id(file, key, len(tokens)) for key in END_KEYS]
    try:
        return Bpe(
            tokens,
            [int(kind) for kind in types],
            file.get("tokenizer.ggml.merges", list),
            rule,
            bos_id=_token_id(file, "bos_token_id", len(tokens)),
            end_ids=[token for token in ends if token is not None],
            add_bos=file.get("tokenizer.ggml.add_bos_token", bool, rule.add_bos),
        )
    except ValueError as error:
        raise ModelError(f"{file.path}: tokenizer: {error}. Convert the model again.") from error


def _token_id(file: Gguf, key: str, size: int) -> int | None:
    """Return the id of a special token, None if the file names none."""
    key = f"tokenizer.ggml.{key}"
    if key not in file.metadata:
        return None
    token = file.get(key, int)
    if not 0 <= token < size:
        raise ModelError(f"{file.path}: {key!r} is {token}, but ids are 0 to {size - 1}. Convert the model again.")
    return token
