"""Text in pieces: what a family puts before a text does not come between the pieces of one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.vocabularies import NAMES, ByteVocabulary
from worker.engines.base import Bounds, Generation
from worker.engines.output.guide import Guides
from worker.engines.prompt.chat import ChatTemplate
from worker.engines.prompt.reader import ModelReader
from worker.engines.vocabulary import Continuation
from worker.requests import Message, Prompt, ResponseFormat, Sampling

CITY = {
    "type": "object",
    "properties": {"big": {"type": "boolean"}},
    "required": ["big"],
    "additionalProperties": False,
}


class SpacedVocabulary(ByteVocabulary):
    """One that begins each text with a space, as most of SentencePiece do."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of the text, and of a space before it."""
        return super().encode(" " + text, special=special) if text else []


class GreedyVocabulary(SpacedVocabulary):
    """One that joins the sentinel with what follows it, which none should do."""


SPACED = SpacedVocabulary((b"he", b" he", b"true", b'{"'), add_bos=False)


def text_of(vocabulary: ByteVocabulary, ids: list[int]) -> str:
    return b"".join(map(vocabulary.token_bytes, ids)).decode()


@given(st.text(max_size=20))
def test_a_continuation_has_the_text_and_nothing_else(text: str) -> None:
    ids = Continuation(SPACED).encode(text, special=False)
    assert text_of(SPACED, ids) == text
    plain = ByteVocabulary()
    assert Continuation(plain).encode(text, special=False) == plain.encode(text, special=False)


def test_names_are_tokens_in_a_continuation_if_asked() -> None:
    name, token = next(iter(NAMES.items()))
    assert token in Continuation(SPACED).encode(f"x{name}", special=True)
    assert token not in Continuation(SPACED).encode(f"x{name}", special=False)


def test_where_the_first_character_is_joined_the_text_is_encoded_as_any_other() -> None:
    greedy = GreedyVocabulary((b" \x02h",), add_bos=False)
    assert text_of(greedy, Continuation(greedy).encode("he", special=False)) == " he"


@pytest.mark.parametrize("wanted", [{"type": "boolean"}, {"enum": ["hello", "he"]}, CITY])
def test_forced_text_is_what_the_form_says(wanted: dict[str, object]) -> None:
    made = Guides(SPACED).guide(ResponseFormat(type="json_schema", schema=wanted))
    assert made is not None
    written: list[int] = []
    while not made.complete and len(written) < 40:
        written.append(int(made.allowed().argmax()))
        assert made.accept(written[-1])
    json.loads(text_of(SPACED, [token for token in written if token not in SPACED.eos_ids]))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_message_that_is_cut_comes_through_unchanged(name: str) -> None:
    reader = ModelReader(SPACED, ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}"))
    said = f"before{name}after {name}"
    generation = Generation(
        lease="s", prompt=Prompt(messages=(Message("user", said),)), sampling=Sampling(), max_tokens=1
    )
    prepared = reader.prepare(generation, Bounds(512, 512, SPACED.size, rewinds=False))
    assert text_of(SPACED, list(prepared.prompt_ids)) == " " + said
