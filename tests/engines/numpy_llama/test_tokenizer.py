"""The tokenizer that a GGUF file's metadata describes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFValueType, TokenType

from tests.engines.models import BEGIN, END, MERGES, TOKENS, TYPES, Sizes, random_weights, write_model
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama.tokenizer import load_tokenizer
from worker.engines.prompt.bpe import Bpe
from worker.engines.prompt.pretokenizers import PRE_TOKENIZERS
from worker.errors import ModelError

STRING, ARRAY, NUMBER = GGUFValueType.STRING, GGUFValueType.ARRAY, GGUFValueType.UINT32


def written(path: Path, **changes: object) -> Path:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return write_model(path / "model.gguf", Sizes(layers=1), random_weights(Sizes(layers=1)), metadata=metadata)


def test_a_file_gives_its_tokenizer(tmp_path: Path) -> None:
    tiny = Bpe(TOKENS, TYPES, MERGES, PRE_TOKENIZERS["qwen2"], bos_id=BEGIN, end_ids=[END])
    bpe = load_tokenizer(open_gguf(written(tmp_path)))
    assert (bpe.size, bpe.bos_id, bpe.eos_ids, bpe.add_bos) == (len(TOKENS), BEGIN, {END}, True)
    assert bpe.encode("and the é 12", special=False) == tiny.encode("and the é 12", special=False)


def test_without_a_flag_the_rule_decides_about_bos(tmp_path: Path) -> None:
    assert load_tokenizer(open_gguf(written(tmp_path, add_bos_token=None, pre=(STRING, "llama-bpe")))).add_bos
    assert not load_tokenizer(open_gguf(written(tmp_path, add_bos_token=None))).add_bos


def test_special_tokens_are_optional(tmp_path: Path) -> None:
    types = (ARRAY, [int(TokenType.NORMAL)] * len(TOKENS))
    bpe = load_tokenizer(open_gguf(written(tmp_path, bos_token_id=None, eos_token_id=None, token_type=types)))
    assert (bpe.bos_id, bpe.eos_ids, bpe.special_ids) == (None, frozenset(), frozenset())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": (STRING, "llama")}, r"type 'llama'.*llama_cpp"),
        ({"model": None}, r"'tokenizer.ggml.model' is missing"),
        ({"pre": (STRING, "kimi-k2")}, r"'kimi-k2', is not known.*llama_cpp"),
        ({"tokens": (ARRAY, ["a"])}, r"1 tokens have \d+ types"),
        ({"tokens": (ARRAY, ["aa", "bb"]), "token_type": None}, r"no byte has a token"),
        ({"merges": (ARRAY, ["zz e"])}, r"the merge 'zz e' needs 'zz', which is no token"),
        ({"merges": (ARRAY, ["t x"])}, r"the merge 't x' needs 'tx', which is no token"),
        ({"merges": (ARRAY, ["t"])}, r"the merge 't' needs '', which is no token"),
        ({"eos_token_id": (NUMBER, 9999)}, r"'tokenizer.ggml.eos_token_id' is 9999, but ids are 0 to"),
    ],
)
def test_an_unusable_tokenizer_is_refused(tmp_path: Path, changes: dict[str, object], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        load_tokenizer(open_gguf(written(tmp_path, **changes)))
