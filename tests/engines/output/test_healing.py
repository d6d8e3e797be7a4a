"""Healing: which last token of a prompt can be chosen anew, and from what."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engines.vocabularies import BOS, EOT, USER, ByteVocabulary
from worker.engines.output.healing import Healing

EURO = "€".encode()
WORDS = st.lists(st.binary(min_size=1, max_size=6), unique=True, max_size=30).map(tuple)


@given(words=WORDS, data=st.data())
def test_allowed_are_exactly_the_tokens_that_begin_so(words: tuple[bytes, ...], data: st.DataObject) -> None:
    vocabulary = ByteVocabulary(words)
    healing = Healing(vocabulary)
    beginnings = [word[:end] for word in words for end in range(1, len(word) + 1)]
    known = st.sampled_from(beginnings) if beginnings else st.nothing()
    for prefix in data.draw(st.lists(known | st.binary(min_size=1, max_size=7), min_size=1, max_size=5)):
        expected = [vocabulary.token_bytes(token).startswith(prefix) for token in range(vocabulary.size)]
        assert healing.allowed(prefix).tolist() == expected


@given(words=WORDS, ids=st.lists(st.integers(0, 259), min_size=1, max_size=5), data=st.data())
def test_a_last_token_is_healed_where_there_is_a_choice(
    words: tuple[bytes, ...], ids: list[int], data: st.DataObject
) -> None:
    vocabulary = ByteVocabulary(words)
    ids.append(data.draw(st.integers(0, vocabulary.size - 1)))
    last = vocabulary.token_bytes(ids[-1])
    choice = sum(vocabulary.token_bytes(token).startswith(last) for token in range(vocabulary.size))
    assert Healing(vocabulary).healed(ids) == (last if last and choice > 1 else b"")


def test_what_stays_as_it_is() -> None:
    healing = Healing(ByteVocabulary((b"ab", EURO, EURO[1:])))
    assert healing.healed([BOS, 97]) == b"a"
    assert healing.healed([97]) == b"", "nothing would be left"
    assert healing.healed([BOS, 98]) == b"", "no other token begins so"
    assert [healing.healed([BOS, 97, control]) for control in (BOS, EOT, USER)] == [b""] * 3
    # The rest of a character is bytes like any others.
    assert healing.healed([BOS, EURO[0], EURO[1]]) == EURO[1:2]
    assert np.flatnonzero(healing.allowed(EURO[1:2])).tolist() == [EURO[1], 262]


def test_the_vocabulary_is_read_once_and_not_for_each_prompt() -> None:
    class Counting(ByteVocabulary):
        reads = 0

        def token_bytes(self, token: int) -> bytes:
            self.reads += 1
            return super().token_bytes(token)

    vocabulary = Counting((b"ab", b"abc"))
    healing = Healing(vocabulary)
    for _ in range(10):
        assert healing.healed([BOS, 97]) == b"a"
    assert vocabulary.reads == vocabulary.size + 10
