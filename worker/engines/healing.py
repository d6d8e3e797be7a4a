"""Token healing: the last token of a prompt is chosen anew, together with what may follow it in one token.

"http:" ends in the token ":", and a model that has only ever seen "://" as one token finds "//" improbable after that.
So the last token is taken off the prompt, the first token of the output must begin with its bytes, and the text that is
shown is without those (Lundberg, "The art of prompt design: prompt boundaries and token healing", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.engines.vocabulary import Vocabulary


class _Pieces(NamedTuple):
    """The bytes of all tokens, one after the other, and by token where they start and how many they are."""

    data: NDArray[np.uint8]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]


class Healing:
    """Finds the tokens of one vocabulary by their first bytes. All of them are read on first use."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def healed(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of a prompt's last token if it can be chosen anew.

        It stays, and b"" is returned, where it is the only token, a control token, or the only one that begins so.
        """
        prefix = self._vocabulary.token_bytes(ids[-1]) if len(ids) > 1 else b""
        return prefix if prefix and np.count_nonzero(self.allowed(prefix)) > 1 else b""

    def allowed(self, prefix: bytes) -> NDArray[np.bool_]:
        """Return which tokens begin with `prefix`, shape (vocab,)."""
        pieces = self._pieces
        tokens = np.flatnonzero(pieces.sizes >= len(prefix))
        for place, byte in enumerate(prefix):
            tokens = tokens[pieces.data[pieces.starts[tokens] + place] == byte]
        allowed = np.zeros(self._vocabulary.size, np.bool_)
        allowed[tokens] = True
        return allowed

    @cached_property
    def _pieces(self) -> _Pieces:
        pieces = [self._vocabulary.token_bytes(token) for token in range(self._vocabulary.size)]
        sizes = np.fromiter(map(len, pieces), np.intp, len(pieces))
        return _Pieces(np.frombuffer(b"".join(pieces), np.uint8), sizes.cumsum() - sizes, sizes)
