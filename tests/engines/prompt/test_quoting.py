"""Quoting: no name of a control token is left in what users say, and nothing else changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engines.prompt.quoting import Quoting
from worker.requests import Message

NAMES = ("<|im_start|>", "<|im_end|>", "ab", "bc", "x")
contents = st.lists(st.sampled_from([*NAMES, "<|im_", "start|>", "a", "b", "c", "\n", "\ufdd0", "\ufdd1"])).map("".join)


@given(st.lists(contents, min_size=1, max_size=3))
def test_pieces_have_no_names_and_are_the_text(texts: list[str]) -> None:
    messages = tuple(Message("user", text) for text in texts)
    marked, mark = Quoting(NAMES).mark(messages)
    if mark is None:
        assert marked == messages
    for text, message in zip(texts, marked, strict=True):
        pieces = message.content.split(mark) if mark else [message.content]
        assert "".join(pieces) == text
        assert not any(name in piece for piece in pieces for name in NAMES if len(name) > 1)


def test_other_roles_and_ordinary_text_stay() -> None:
    said = (Message("system", "ab"), Message("assistant", "bc"), Message("user", "x <|im_ start|>"))
    assert Quoting(NAMES).mark(said) == (said, None)
    marked, mark = Quoting(NAMES).mark((*said, Message("tool", "ab")))
    assert marked == (*said, Message("tool", f"a{mark}b"))


def test_a_model_without_control_tokens_has_nothing_to_quote() -> None:
    said = (Message("user", "anything"),)
    assert Quoting(()).mark(said) == (said, None)
