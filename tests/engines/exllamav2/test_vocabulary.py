"""The tokenizer of a folder: the same tokens as our own of the GGUF file, and SentencePiece's way of writing bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from tests.contracts.engines import MODEL
from tests.engines.exllamav2.test_folder import folder
from worker.bundled import chat
from worker.engines.exllamav2.folder import Folder
from worker.engines.exllamav2.vocabulary import FolderVocabulary
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama.tokenizer import load_tokenizer
from worker.engines.prompt.bpe import Bpe
from worker.errors import ModelError

TEXTS = [
    "",
    "Hello, World! It's 2024-12-31 23:59; don't panic...",
    "  leading and   inner\t\tspaces \n\n\nand lines\r\n ",
    "日本語の文章、한국어, שלום עולם, 👩‍👩‍👧 👍🏽 e\u0301",
    "def f(x): return {x: [1, 2.5e-3]}  # <|user|> <|end|> <|nothing|>",
    "\0\x01\x7f",
]


@pytest.fixture(scope="module")
def ours() -> Bpe:
    return load_tokenizer(open_gguf(MODEL))


@pytest.fixture(scope="module")
def bundled(ours: Bpe, tmp_path_factory: pytest.TempPathFactory) -> FolderVocabulary:
    """The bundled tokenizer, written as a folder's."""
    file = open_gguf(MODEL)
    tokens, merges = file.get("tokenizer.ggml.tokens", list), file.get("tokenizer.ggml.merges", list)
    names = {f"{name}_token": chat.SPECIAL[number] for name, number in (("bos", chat.BEGIN), ("eos", chat.END))}
    path = folder(
        tmp_path_factory.mktemp("tokenizer") / "m",
        config={"eos_token_id": chat.END, "bos_token_id": chat.BEGIN},
        tokenizer_config={**names, "add_bos_token": False},
        tokenizer=chat.build_tokenizer(tokens, merges).to_str(),
    )
    return FolderVocabulary(Folder(path), len(tokens))


def test_facts(bundled: FolderVocabulary, ours: Bpe) -> None:
    assert (bundled.size, bundled.bos_id, bundled.add_bos) == (ours.size, ours.bos_id, ours.add_bos)
    assert (bundled.eos_ids, bundled.special_ids) == (ours.eos_ids, ours.special_ids)
    assert bundled.token_text_max == ours.token_text_max


def test_every_token_has_the_same_bytes(bundled: FolderVocabulary, ours: Bpe) -> None:
    assert [bundled.token_bytes(token) for token in range(ours.size)] == list(map(ours.token_bytes, range(ours.size)))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_text_becomes_the_same_tokens(bundled: FolderVocabulary, ours: Bpe, text: str, special: bool) -> None:
    ids = bundled.encode(text, special=special)
    assert ids == ours.encode(text, special=special)
    if not special:
        assert b"".join(map(bundled.token_bytes, ids)).decode() == text


# ---- SentencePiece ---------------------------------------------------------------------------------------------------


def sentencepiece(path: Path, **changes: Any) -> Folder:
    """A tokenizer as Llama 2 and Mistral have it: spaces as U+2581, bytes without a piece by their names."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "é", "<tool>"]
    model = models.BPE(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[("▁", "a")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    document = json.loads(tokenizer.to_str())
    document["added_tokens"].append({**document["added_tokens"][0], "id": pieces.index("<tool>"), "content": "<tool>"})
    document["added_tokens"][-1]["special"] = False
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, **changes}
    return Folder(folder(path, tokenizer=document, tokenizer_config=names, config={"eos_token_id": 2}))


def test_spaces_and_bytes_as_sentencepiece_writes_them(tmp_path: Path) -> None:
    vocabulary = FolderVocabulary(sentencepiece(tmp_path / "m"), 1000)
    text = " a b é 👍"
    ids = vocabulary.encode(text, special=False)
    assert b"".join(map(vocabulary.token_bytes, ids)).decode() == text
    assert [vocabulary.token_bytes(token) for token in ids[-4:]] == [b"\xf0", b"\x9f", b"\x91", b"\x8d"]


def test_special_tokens_are_silent_and_other_added_ones_are_text(tmp_path: Path) -> None:
    vocabulary = FolderVocabulary(sentencepiece(tmp_path / "m"), 1000)
    ids = vocabulary.encode("</s><tool>", special=True)
    assert [vocabulary.token_bytes(token) for token in ids] == [b"", b"<tool>"]
    assert 2 not in vocabulary.encode("</s>", special=False)
    assert (vocabulary.bos_id, vocabulary.eos_ids, vocabulary.add_bos) == (1, {2}, True)


def test_rows_beyond_the_tokenizer_and_tokens_beyond_the_rows_are_none(tmp_path: Path) -> None:
    model = sentencepiece(tmp_path / "m")
    assert FolderVocabulary(model, 10_000).size == 3 + 256 + 6
    assert FolderVocabulary(model, 260).size == 260


def test_a_begin_token_is_added_where_the_tokenizer_itself_does(tmp_path: Path) -> None:
    model = sentencepiece(tmp_path / "m", add_bos_token=None)
    assert not FolderVocabulary(model, 1000).add_bos
    path = model.path / "tokenizer.json"
    document = json.loads(path.read_text())
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(document))
    assert FolderVocabulary(Folder(model.path), 1000).add_bos


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        FolderVocabulary(Folder(folder(tmp_path / "m", tokenizer={"version": "9"})), 10)
