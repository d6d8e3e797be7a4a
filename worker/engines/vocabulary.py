"""A model's tokenizer, as far as the parts shared by all engines need it: text, sampling, guides, preparation."""

from __future__ import annotations

from typing import Protocol


class Vocabulary(Protocol):
    """A model's tokens: ids are 0 to `size` - 1, and every row of logits has `size` entries.

    `add_bos`: a prompt begins with `bos_id` even if its text does not. `eos_ids` end a sequence. `special_ids` are
    control tokens (begin, end, roles): they stand for no text of their own, and prompts spell them by `special_names`.
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
