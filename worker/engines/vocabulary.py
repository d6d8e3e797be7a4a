"""A model's tokenizer, as far as the parts shared by all engines need it: text, sampling, guides, preparation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Protocol


class Vocabulary(Protocol):
    """A model's tokens: ids are 0 to `size` - 1, and every row of logits has `size` entries.

    `add_bos`: a prompt begins with `bos_id` even if its text does not. `eos_ids` end a sequence. `special_ids` are
    control tokens (begin, end, roles): they stand for no text of their own. `special_names` spell them in prompts, and
    those of other tokens that were added to the vocabulary: many models have roles, tools and thoughts among these.
    `token_text_max` is the length in UTF-8 bytes of the longest text that one token stands for, those names included.
    """

    @property
    def size(self) -> int: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def add_bos(self) -> bool: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def special_names(self) -> frozenset[str]: ...

    @property
    def token_text_max(self) -> int: ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`, without `bos_id`. With `special`, names of special tokens become those tokens."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, b"" for control tokens. May be half a character."""
        ...


def commands(names: Iterable[str]) -> frozenset[str]:
    """Return the names of tokens that may mean something to a model: spaces and line ends do not."""
    return frozenset(name for name in names if name.strip())


SENTINELS = "\x02\x1f\x7f"
"""Characters that are joined with none beside them: what a family puts before a text comes before one of these."""


class Continuation:
    """Encodes text that goes on after other text.

    Most SentencePiece models put a space before each text that is encoded (`add_space_prefix`), which would come
    between the pieces of one text. It is left out here by encoding another character first, and dropping its tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @cached_property
    def _head(self) -> list[int]:
        """The tokens that are dropped: none in a family that puts nothing before a text."""
        if self._bytes("a") == b"a":
            return []
        return self._vocabulary.encode(self._sentinel, special=False)

    @cached_property
    def _sentinel(self) -> str:
        return next((one for one in SENTINELS if self._bytes(one).endswith(one.encode())), SENTINELS[0])

    def _bytes(self, text: str) -> bytes:
        return b"".join(map(self._vocabulary.token_bytes, self._vocabulary.encode(text, special=False)))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`, see `Vocabulary.encode`."""
        head = self._head
        if not head:
            return self._vocabulary.encode(text, special=special)
        ids = self._vocabulary.encode(self._sentinel + text, special=special)
        return ids[len(head) :] if ids[: len(head)] == head else self._vocabulary.encode(text, special=special)
