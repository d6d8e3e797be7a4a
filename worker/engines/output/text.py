"""Text from tokens: incremental UTF-8, stop strings, and how much of it may be shown now.

Tokens are cut anywhere: in the middle of a character, in the middle of a stop string. Text is released only up to a
token boundary that no pending text reaches across, together with the tokens that it came from. So a sequence can be
resumed from the released tokens alone, and the concatenation of all pieces is the one-shot decoding of all bytes
(errors="replace"), cut at the stop string.
"""

from __future__ import annotations

import codecs
from collections import deque
from typing import NamedTuple

_decoder = codecs.getincrementaldecoder("utf-8")


class Piece(NamedTuple):
    """`text` may be shown now; it releases the oldest `released` withheld tokens.

    `stop` is the stop string that ended it.

    When the newest text completes a banned string, nothing is shown, and the caller must remove the newest `rewound`
    tokens: the assembler has forgotten them.

    Up to a stop string text is shown to its last character, tokens only to the last boundary before: a token that
    reaches into the stop string gives its text but is not released: a sequence must not be resumed from it.
    """

    released: int
    text: str
    stop: str | None = None
    rewound: int = 0


NOTHING = Piece(0, "")


class _State(NamedTuple):
    """An assembler's state at one point: its decoder's, its matchers', and the number of characters decoded."""

    decoder: tuple[bytes, int]
    stop: int
    ban: int
    end: int


class _Held(NamedTuple):
    """A withheld token: its text, the text's end, whether a character ends there too; and the state before it."""

    text: str
    end: int
    whole: bool
    before: _State | None = None


class TextAssembler:
    """Assembles the text of one sequence. Every operation is O(1) amortised per byte.

    The match that is complete first wins; of those complete at the same character, the longest. `banned` strings are
    found whatever their case, and a stop string that is complete by then goes first. `shown` are bytes that an earlier
    assembler released: a resumed sequence goes on exactly as it would have.
    """

    def __init__(self, stop: tuple[str, ...] = (), shown: bytes = b"", banned: tuple[str, ...] = ()) -> None:
        self._decoder = _decoder("replace")
        self._matcher = _Matcher(stop)
        self._bans = _Matcher(tuple(map(_folded, banned)))
        self._plain = not stop and not banned
        self._held: list[_Held] = []
        self._releasable = 0  # leading tokens of _held that no stop string can still reach
        self._end = 0  # of the text, in characters, from an arbitrary start
        text = self._decoder.decode(shown)
        self._matcher.feed(text)
        self._bans.feed(_folded(text))

    def push(self, data: bytes) -> Piece:
        """Add the bytes of the next token; return what may be shown now. Not allowed after a stop string."""
        before = self._state() if self._bans else None
        text = self._decoder.decode(data)
        whole = not self._decoder.getstate()[0]
        if whole and self._plain and not self._held:
            return Piece(1, text)
        return self._add(_Held(text, self._end + len(text), whole, before))

    def finish(self) -> Piece:
        """End the text: nothing is withheld any longer, and half a character becomes U+FFFD."""
        self._bans = _Matcher(())  # the beginning of a banned string is shown now
        tail = self._decoder.decode(b"", True)
        piece = self._add(_Held(tail, self._end + len(tail), True)) if tail else NOTHING
        if piece.stop is not None:
            return piece
        # The tail is no token of its own: it belongs to the last one.
        released = piece.released + len(self._held) - bool(tail)
        text = piece.text + "".join(held.text for held in self._held)
        self._held.clear()
        return Piece(released, text)

    def _add(self, held: _Held) -> Piece:
        self._held.append(held)
        start, self._end = self._end, held.end
        match, ban = self._matcher.feed(held.text), self._bans.feed(_folded(held.text)) if self._bans else None
        if match is not None and (ban is None or match.end <= ban.end):
            return self._stop(start + match.end - len(match.stop), match.stop)
        if ban is not None:
            return self._rewind(start + ban.end - len(ban.stop))
        return self._release(held.end - max(self._matcher.pending, self._bans.pending))

    def _state(self) -> _State:
        return _State(self._decoder.getstate(), self._matcher.state, self._bans.state, self._end)

    def _rewind(self, begin: int) -> Piece:
        """Forget all tokens from the one on in which the banned string at character `begin` begins."""
        first = next((number for number, held in enumerate(self._held) if held.end > begin), len(self._held) - 1)
        before, count = self._held[first].before, len(self._held) - first
        assert before is not None
        decoder, self._matcher.state, self._bans.state, self._end = before
        self._decoder.setstate(decoder)
        del self._held[first:]
        self._releasable = min(self._releasable, first)
        return Piece(0, "", None, count)

    def _release(self, safe: int) -> Piece:
        """Release up to the last boundary at or before character `safe`, which only ever grows."""
        cut = 0
        while self._releasable < len(self._held) and self._held[self._releasable].end <= safe:
            self._releasable += 1
            if self._held[self._releasable - 1].whole:
                cut = self._releasable
        if not cut:
            return NOTHING
        text = "".join(held.text for held in self._held[:cut])
        del self._held[:cut]
        self._releasable -= cut
        return Piece(cut, text)

    def _stop(self, begin: int, stop: str) -> Piece:
        """End before the stop string that begins at character `begin`."""
        text = "".join(held.text for held in self._held)
        start = self._end - len(text)
        released = max((i + 1 for i, held in enumerate(self._held) if held.whole and held.end <= begin), default=0)
        self._held.clear()
        return Piece(released, text[: max(begin - start, 0)], stop)


def _folded(text: str) -> str:
    """Return the text in one case, character by character, so that lengths stay."""
    lower = text.lower()
    if text.isascii():
        return lower
    return "".join(small if len(small := character.lower()) == 1 else character for character in text)


class _Match(NamedTuple):
    """A stop string, and the offset of its end in the text just fed."""

    stop: str
    end: int


class _Matcher:
    """Finds stop strings in a stream of text (Aho and Corasick 1975): one step per character, however many strings."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._found: list[str | None] = [None]
        self._depth = [0]
        for stop in stops:
            self._insert(stop)
        self._fail = self._link()
        self.state = 0

    def __bool__(self) -> bool:
        """Return whether there is anything to find."""
        return len(self._next) > 1

    @property
    def pending(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        return self._depth[self.state]

    def feed(self, text: str) -> _Match | None:
        """Read on; return the first match. In `text` no match begins before the last one ended."""
        state = self.state
        for offset, character in enumerate(text):
            while state and character not in self._next[state]:
                state = self._fail[state]
            state = self._next[state].get(character, 0)
            found = self._found[state]
            if found is not None:
                self.state = state
                return _Match(found, offset + 1)
        self.state = state
        return None

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._found.append(None)
                self._depth.append(self._depth[state] + 1)
            state = self._next[state][character]
        self._found[state] = stop

    def _link(self) -> list[int]:
        """For each state, the state of its longest proper suffix; a match there is a match here too."""
        fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                queue.append(child)
                other = fail[state]
                while other and character not in self._next[other]:
                    other = fail[other]
                fail[child] = self._next[other].get(character, 0)
                self._found[child] = self._found[child] or self._found[fail[child]]
        return fail
