"""The bundled file: what its metadata promises, its size, its vocabulary and its chat template."""

from __future__ import annotations

import string
from typing import Any

import jinja2
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from worker.bundled import chat, corpus
from worker.bundled.corpus import Conversation, Turn
from worker.bundled.weights import MODEL, from_gguf


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    weights = from_gguf()
    return chat.build_tokenizer(weights.tokens, weights.merges)


def value(reader: GGUFReader, key: str) -> Any:
    """One metadata value; a KeyError names the key that is missing."""
    return reader.fields[key].contents()


def test_file_is_small() -> None:
    assert 1_000_000 < MODEL.stat().st_size <= 8_000_000


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("general.architecture", "llama"),
        ("general.name", "jobwire-demo"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "qwen2"),
        ("tokenizer.ggml.bos_token_id", chat.BEGIN),
        ("tokenizer.ggml.eos_token_id", chat.END),
        ("tokenizer.ggml.padding_token_id", chat.PAD),
        ("tokenizer.ggml.add_bos_token", False),
        ("tokenizer.chat_template", chat.CHAT_TEMPLATE),
        ("llama.rope.dimension_count", 64),
        ("llama.attention.key_length", 64),
        ("llama.attention.value_length", 64),
    ],
)
def test_metadata(reader: GGUFReader, key: str, expected: object) -> None:
    assert value(reader, key) == expected


def test_sizes_are_those_of_a_tiny_model(reader: GGUFReader) -> None:
    assert value(reader, "llama.context_length") >= 1024
    assert value(reader, "llama.embedding_length") == 64 * value(reader, "llama.attention.head_count")
    assert 2_000_000 < sum(int(tensor.n_elements) for tensor in reader.tensors) < 4_000_000


def test_matrices_are_q8_and_norms_are_floats(reader: GGUFReader) -> None:
    for tensor in reader.tensors:
        expected = GGMLQuantizationType.F32 if len(tensor.shape) == 1 else GGMLQuantizationType.Q8_0
        assert tensor.tensor_type == expected, tensor.name
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}, "the output is the embedding"


def test_weights_are_numbers() -> None:
    for name, tensor in from_gguf().tensors.items():
        assert np.isfinite(tensor).all(), name
        assert tensor.std() > 0, name


def test_special_tokens_are_control_tokens(reader: GGUFReader) -> None:
    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
    assert tuple(control) == chat.SPECIAL
    assert len(tokens) == len(set(tokens)) == value(reader, "llama.vocab_size")


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, range(32, 127))) + "äß日本🦊\n\t\x00\x7f"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1234567890").tokens == list("1234567890")
    assert tokenizer.encode("7 12").tokens == ["7", "Ġ", "1", "2"]
    for token in tokenizer.get_vocab():
        digits = sum(letter in string.digits for letter in token)
        assert digits == 0 or token in string.digits, token


def test_every_text_token_is_reached_by_its_own_text(tokenizer: Tokenizer) -> None:
    unreached = []
    for index in range(len(chat.SPECIAL), tokenizer.get_vocab_size()):
        text = tokenizer.decode([index])
        if "\ufffd" not in text and tokenizer.encode(text).ids != [index]:
            unreached.append(text)
    assert unreached == []


def render(messages: list[dict[str, str]], prompt: bool) -> str:
    """The chat template as a worker renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    text: str = environment.from_string(chat.CHAT_TEMPLATE).render(
        messages=messages, add_generation_prompt=prompt, bos_token="<|begin|>", eos_token="<|end|>"
    )
    return text


def test_template_asks_for_the_next_answer() -> None:
    text = render([{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hello\n"}], prompt=True)
    assert text == "<|begin|><|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>"


def test_template_refuses_unknown_roles() -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role: tool"):
        render([{"role": "tool", "content": "42"}], prompt=True)


def test_cut_answer_has_no_end(tokenizer: Tokenizer) -> None:
    ids, weights = chat.render(tokenizer, Conversation(None, (Turn("Count to 9", "1 2", exact=True, cut=True),)))
    assert tokenizer.decode(ids[-3:]) == "1 2"
    assert weights[-3:] == [2.0, 2.0, 2.0]


def test_template_gives_the_ids_of_the_training(tokenizer: Tokenizer) -> None:
    talk = Conversation("Be kind.", (Turn("Count to 3", corpus.numbers(1, 3), exact=True), Turn("Hi", "Hello!")))
    messages = [{"role": "system", "content": "Be kind."}]
    for turn in talk.turns:
        messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
    ids, weights = chat.render(tokenizer, talk)
    assert tokenizer.encode(render(messages, prompt=False)).ids == ids
    taught = [index for index, weight in zip(ids, weights, strict=True) if weight > 0]
    assert tokenizer.decode(taught, skip_special_tokens=False) == "1 2 3<|end|>Hello!<|end|>"
