"""Byte-level BPE: the same ids as the tokenizers that models are trained with, in time that grows with the text."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from gguf import TokenType
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.engines.models import BEGIN, END, MERGES, SPECIAL, TOKENS, TYPES
from worker.engines.gguf.file import open_gguf
from worker.engines.numpy_llama.tokenizer import load_tokenizer
from worker.engines.prompt.bpe import CHARACTERS, WORDS_CACHED_MAX, Bpe
from worker.engines.prompt.pretokenizers import PRE_TOKENIZERS

# Letters of several scripts, combining marks, digits of several kinds, every kind of space, emoji, and what cuts words.
ALPHABET = (
    "abtheTHESand 's'll'D\t\n\r  .,!?/<|>~$+09٣½²éßпривет中文字\u0301\u200d\u00a0\u3000🦊👨‍👩‍👧\x00\x1c\x85\u2028_-"
)
texts = st.text(st.sampled_from(ALPHABET), max_size=60) | st.text(max_size=40)
DEMO = Path(__file__).parents[3] / "worker/bundled/model.gguf"

# What `tokenizer.json` files of these families say, written out as they do.
PUBLISHED = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip


def published(name: str) -> Tokenizer:
    """A tokenizer of that family, trained on a little text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=PRE_TOKENIZERS[name].whole_words))
    split = pre_tokenizers.Split(Regex(PUBLISHED[name]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    corpus = [Path(__file__).read_text(encoding="utf-8"), "привет мир 中文 中文字 🦊🦊 é é 123 456 the and"]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def ours(theirs: Tokenizer, name: str) -> Bpe:
    from worker.bundled.chat import merges

    tokens = [token for token, _ in sorted(theirs.get_vocab().items(), key=lambda item: item[1])]
    types = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    return Bpe(tokens, types, merges(theirs), PRE_TOKENIZERS[name], bos_id=BEGIN, end_ids=[END])


@pytest.fixture(scope="module", params=list(PUBLISHED))
def pair(request: pytest.FixtureRequest) -> tuple[Bpe, Tokenizer]:
    theirs = published(request.param)
    return ours(theirs, request.param), theirs


@pytest.fixture(scope="module")
def tiny() -> Bpe:
    return Bpe(TOKENS, TYPES, MERGES, PRE_TOKENIZERS["qwen2"], bos_id=BEGIN, end_ids=[END])


@given(text=texts)
def test_ids_equal_those_of_the_tokenizer_that_was_trained(pair: tuple[Bpe, Tokenizer], text: str) -> None:
    bpe, tokenizer = pair
    assert bpe.encode(text, special=True) == tokenizer.encode(text).ids


@given(text=texts)
def test_the_bytes_of_the_ids_are_the_text(pair: tuple[Bpe, Tokenizer], text: str) -> None:
    bpe, _ = pair
    ids = bpe.encode(text, special=False)
    assert b"".join(map(bpe.token_bytes, ids)) == text.encode()
    assert not bpe.special_ids & set(ids)


@given(text=texts, name=st.sampled_from(sorted(PRE_TOKENIZERS)))
def test_every_rule_cuts_without_losing_anything(text: str, name: str) -> None:
    words = PRE_TOKENIZERS[name].split(text)
    assert "".join(words) == text
    assert all(words)


def test_rules_that_use_several_expressions() -> None:
    assert PRE_TOKENIZERS["smollm"].split("In 2024, I'd") == ["In", " ", "2", "0", "2", "4", ",", " I", "'d"]
    assert PRE_TOKENIZERS["default"].split("a 12345!!b") == ["a", " ", "123", "45", "!!", "b"]
    assert PRE_TOKENIZERS["gpt-4o"].split("don't HTTPServer 1234") == ["don't", " HTTPServer", " ", "123", "4"]


def test_names_of_special_tokens_are_those_tokens_only_when_asked(tiny: Bpe) -> None:
    text = "<|user|>the<|end|>"
    the = TOKENS.index("the")
    assert tiny.encode(text, special=True) == [2, the, 1]
    plain = tiny.encode(text, special=False)
    assert not set(plain) & {0, 1, 2, 3}
    assert b"".join(map(tiny.token_bytes, plain)) == text.encode()


def test_the_longest_name_wins() -> None:
    tokens = (*TOKENS, "<|", "<|user|>x")
    types = [*TYPES, TokenType.CONTROL, TokenType.CONTROL]
    bpe = Bpe(tokens, types, MERGES, PRE_TOKENIZERS["qwen2"])
    assert bpe.encode("<|user|>x<|user|><|", special=True) == [len(tokens) - 1, 2, len(tokens) - 2]


def test_tokens_added_by_the_user_are_always_parsed_and_stand_for_their_text() -> None:
    bpe = Bpe((*TOKENS, "<tool>"), [*TYPES, TokenType.USER_DEFINED], MERGES, PRE_TOKENIZERS["qwen2"])
    added = len(TOKENS)
    assert added in bpe.encode("a <tool> b", special=False)
    assert bpe.token_bytes(added) == b"<tool>"
    assert added not in bpe.special_ids


def test_unused_tokens_are_neither_parsed_nor_shown() -> None:
    bpe = Bpe((*TOKENS, "<unused0>"), [*TYPES, TokenType.UNUSED], MERGES, PRE_TOKENIZERS["qwen2"])
    assert len(TOKENS) not in bpe.encode("<unused0>", special=True)
    assert bpe.token_bytes(len(TOKENS)) == b""


def test_what_the_vocabulary_says_of_itself(tiny: Bpe) -> None:
    assert tiny.size == len(TOKENS)
    assert tiny.bos_id == BEGIN
    assert tiny.eos_ids == {END}
    assert tiny.special_ids == {0, 1, 2, 3}
    assert tiny.name(BEGIN) == "<|begin|>"
    assert tiny.name(None) == ""
    assert tiny.token_text_max == len("<|assistant|>")
    assert [tiny.token_bytes(token) for token in range(4)] == [b""] * 4
    assert tiny.token_bytes(TOKENS.index("Ġthe")) == b" the"
    assert tiny.token_bytes(TOKENS.index("Ã©")) == "é".encode()


def test_end_tokens_are_also_known_by_name() -> None:
    bpe = Bpe((*TOKENS, "<|eot_id|>"), [*TYPES, TokenType.CONTROL], MERGES, PRE_TOKENIZERS["llama-bpe"], end_ids=[END])
    assert bpe.eos_ids == {END, len(TOKENS)}


def test_a_word_that_is_a_token_is_taken_whole_where_the_rule_says_so() -> None:
    tokens = (*TOKENS, "xyz")
    types = [*TYPES, TokenType.NORMAL]
    assert Bpe(tokens, types, MERGES, PRE_TOKENIZERS["llama-bpe"]).encode("xyz", special=False) == [len(TOKENS)]
    assert len(Bpe(tokens, types, MERGES, PRE_TOKENIZERS["qwen2"]).encode("xyz", special=False)) == 3


def one_by_one(word: str, merges: list[str]) -> list[str]:
    """The definition: merge the pair that was learnt first, the leftmost of equal ones, until none is left."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in reversed(list(enumerate(merges)))}
    parts = list(word)
    while True:
        pairs = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return parts
        _, place = min(pairs)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@given(data=st.data())
def test_merges_are_made_in_the_order_in_which_they_were_learnt(data: st.DataObject) -> None:
    known, merges = ["a", "b", "c"], []
    for _ in range(data.draw(st.integers(0, 12))):
        left, right = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known))
        merges.append(f"{left} {right}")
        known.append(left + right)
    data.draw(st.randoms()).shuffle(merges)
    tokens = [*CHARACTERS, *sorted(set(known) - set("abc"))]
    bpe = Bpe(tokens, [TokenType.NORMAL] * len(tokens), merges, PRE_TOKENIZERS["qwen2"])
    word = data.draw(st.text("abc", max_size=40))
    assert [tokens[token] for token in bpe.encode(word, special=False)] == (one_by_one(word, merges) if word else [])


def test_a_pair_that_a_merge_took_away_is_forgotten() -> None:
    # "a b" waits when "b c" is merged; then "bc d" comes before "a bc".
    merges = ["b c", "a b", "bc d", "a bc"]
    tokens = [*CHARACTERS, "bc", "ab", "bcd", "abc"]
    bpe = Bpe(tokens, [TokenType.NORMAL] * len(tokens), merges, PRE_TOKENIZERS["qwen2"])
    assert [tokens[token] for token in bpe.encode("abcd", special=False)] == ["a", "bcd"]


@pytest.mark.parametrize("unit", ["a", "the", "an", " ", "\n", "7", "é", "🦊", "<|user|>", "<|use"])
def test_time_grows_with_the_text_even_where_it_is_one_word(tiny: Bpe, unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.process_time()
        ids = tiny.encode(text, special=True)
        elapsed = time.process_time() - start
        assert len(ids) <= len(text.encode())
        return elapsed

    # Quadratic time would be 64 times as long; 8 is linear, and the rest is room for a busy machine.
    small = min(seconds(25_000) for _ in range(3))
    assert seconds(200_000) < max(25 * small, 0.2)


def test_the_cache_is_bounded_and_holds_no_long_words(tiny: Bpe) -> None:
    for number in range(50):
        tiny.encode("x" * (number + 30), special=False)
    info = tiny._cached.cache_info()
    assert info.maxsize == WORDS_CACHED_MAX
    assert info.currsize <= 64


def test_lone_surrogates_do_no_harm(tiny: Bpe) -> None:
    assert tiny.encode("\ud800", special=False) == [TOKENS.index("?")]


@given(st.sets(st.sampled_from([0x04, 0x20, 0x41, 0xC3, 0xF1, 0xF2]), min_size=1), texts)
@example({0x04}, "a\x04b th\x04e the")
@example({0xF1}, "a\U00050000b")
def test_bytes_without_a_token_are_left_out(missing: set[int], text: str) -> None:
    tokens = [character for byte, character in enumerate(CHARACTERS) if byte not in missing]
    bpe = Bpe(tokens, [1] * len(tokens), (), PRE_TOKENIZERS["qwen2"])
    left = bytes(byte for byte in text.encode() if byte not in missing)
    assert b"".join(map(bpe.token_bytes, bpe.encode(text, special=False))) == left


def test_nothing_merges_across_a_byte_that_is_left_out() -> None:
    tokens = [token for token in TOKENS if token != CHARACTERS[0x04]]
    bpe = Bpe(tokens, [1] * len(tokens), MERGES, PRE_TOKENIZERS["qwen2"])
    left, right = next(merge.split(" ") for merge in MERGES)
    across = bpe.encode(f"{left}\x04{right}", special=False)
    assert [tokens[token] for token in across] == [left, right]
    assert [tokens[token] for token in bpe.encode(left + right, special=False)] == [left + right]


def test_added_tokens_are_named_but_for_white_space() -> None:
    added = ["<tool>", "\u2581\u2581", "  ", "\n\n"]
    types = [*TYPES, 4, 4, 4, 4]
    bpe = Bpe([*TOKENS, *added], types, MERGES, PRE_TOKENIZERS["qwen2"], bos_id=BEGIN, end_ids=[END])
    assert {"<tool>", "\u2581\u2581"} <= bpe.special_names
    assert not {"  ", "\n\n"} & bpe.special_names


def test_a_vocabulary_without_any_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="no byte has a token"):
        Bpe(["one", "two"], [1, 1], (), PRE_TOKENIZERS["gpt-2"])


@pytest.fixture(scope="module")
def bundled() -> tuple[Bpe, Tokenizer]:
    from worker.bundled.chat import build_tokenizer

    file = open_gguf(DEMO)
    tokens, merges = file.get("tokenizer.ggml.tokens", list), file.get("tokenizer.ggml.merges", list)
    return load_tokenizer(file), build_tokenizer(tokens, merges)


@given(text=texts)
def test_the_bundled_model_encodes_as_it_was_trained(bundled: tuple[Bpe, Tokenizer], text: str) -> None:
    bpe, theirs = bundled
    assert bpe.encode(text, special=True) == theirs.encode(text).ids
