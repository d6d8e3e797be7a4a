"""Token healing: the last token of a prompt is chosen anew, together with what may follow it in one token.

"http:" ends in the token ":", and a model that has only ever seen "://" as one token finds "//" improbable after that.
So the last token is removed from the prompt, the first token of the output must begin with its bytes, and the text is
shown without those (Lundberg, "The art of prompt design: prompt boundaries and token healing", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worker.engines.vocabulary import Vocabulary


class Healing:
    """Finds the tokens of one vocabulary by their first bytes. All are read at once, so that no step waits for it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        # The bytes of all tokens, one after the other, and the start and number of each token's.
        pieces = [vocabulary.token_bytes(token) for token in range(vocabulary.size)]
        self._data = np.frombuffer(b"".join(pieces), np.uint8)
        self._sizes = np.fromiter(map(len, pieces), np.int32, len(pieces))
        self._starts = self._sizes.cumsum(dtype=np.int32) - self._sizes

    def healed(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of a prompt's last token if it can be chosen anew.

        It stays, and b"" is returned, where it is the only token, a control token, or the only one that begins so.
        """
        prefix = self._vocabulary.token_bytes(ids[-1]) if len(ids) > 1 else b""
        return prefix if prefix and np.count_nonzero(self.allowed(prefix)) > 1 else b""

    def allowed(self, prefix: bytes) -> NDArray[np.bool_]:
        """Return which tokens begin with `prefix`, shape (vocab,)."""
        tokens = np.flatnonzero(self._sizes >= len(prefix))
        for place, byte in enumerate(prefix):
            tokens = tokens[self._data[self._starts[tokens] + place] == byte]
        allowed = np.zeros(self._vocabulary.size, np.bool_)
        allowed[tokens] = True
        return allowed
