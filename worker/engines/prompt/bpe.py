"""Byte-level BPE, the tokenizer of GPT-2, Llama 3, Qwen and the bundled model.

Text is cut into words (`pretokenizers`), each word into bytes, and the bytes are merged pair by pair, the pair that was
learnt first before the others (Sennrich et al. 2016). In the vocabulary every byte is written as one printable
character, the way GPT-2 began it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby, pairwise

from worker.engines.prompt.names import finder
from worker.engines.prompt.pretokenizers import PreTokenizer
from worker.engines.vocabulary import commands

WORDS_CACHED_MAX = 16_384
CACHED_WORD_CHARS_MAX = 64

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Types of token in GGUF."""

END_NAMES = frozenset(
    {
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|endoftext|>", "<|end_of_text|>",
        "<end_of_turn>", "<end_of_utterance>", "</s>", "<EOT>", "[EOS]", "[EOT]",
    }
)  # fmt: skip
"""Names of tokens that end a turn: many models name only one of them in their metadata."""


def _alphabet() -> list[str]:
    """Return the character that stands for each byte: itself if it is printable Latin-1, else one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


CHARACTERS = _alphabet()
BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}


class Bpe:
    """A `Vocabulary`: token ids of text and the bytes of tokens. Not thread-safe.

    `tokens` are the texts of the vocabulary by id, `types` their GGUF types, `merges` the pairs in the order in which
    they were learnt, each "left right". Bytes that have no token are left out of what is encoded, as llama.cpp does it:
    many vocabularies have none for bytes that their texts never had. Raises ValueError when a merge is not in the
    vocabulary, or no byte is.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        types: Sequence[int],
        merges: Iterable[str],
        rule: PreTokenizer,
        *,
        bos_id: int | None = None,
        end_ids: Sequence[int] = (),
        add_bos: bool = False,
    ) -> None:
        if not tokens:
            raise ValueError("the vocabulary is empty")
        self.size = len(tokens)
        self.bos_id = bos_id
        self.add_bos = add_bos
        self.end_id = end_ids[0] if end_ids else None
        unspoken = {i for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, UNUSED)}
        self.special_ids = frozenset(unspoken.union(end_ids))
        self.eos_ids = frozenset(end_ids) | {i for i in self.special_ids if tokens[i] in END_NAMES}
        self._tokens = tokens
        self._rule = rule
        self._ids = {text: i for i, text in reversed(list(enumerate(tokens)))}
        verbatim = [i for i, kind in enumerate(types) if kind == USER_DEFINED]
        self._bytes = [b"" if i in self.special_ids else _decoded(text) for i, text in enumerate(tokens)]
        for i in verbatim:
            self._bytes[i] = tokens[i].encode()
        self.token_text_max = max(len(data or tokens[i].encode()) for i, data in enumerate(self._bytes))
        self._byte_ids = self._bytes_to_ids()
        self._merges = self._pairs(merges)
        self._names = {False: finder(tokens[i] for i in verbatim)}
        named = [tokens[i] for i in self.special_ids if types[i] != UNUSED]
        self.special_names = commands((*named, *(tokens[i] for i in verbatim)))
        self._names[True] = finder((*(tokens[i] for i in verbatim), *named))
        self._cached = lru_cache(WORDS_CACHED_MAX)(self._word)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`, without `bos_id`. With `special`, names of special tokens become those tokens."""
        names = self._names[special]
        if names is None:
            return self._plain(text)
        ids: list[int] = []
        end = 0
        for match in names.finditer(text):
            ids += self._plain(text[end : match.start()])
            ids.append(self._ids[match.group()])
            end = match.end()
        return ids + self._plain(text[end:])

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, b"" for control tokens. May be half a character."""
        return self._bytes[token]

    def name(self, token: int | None) -> str:
        """Return the text by which a special token is written, "" for None."""
        return "" if token is None else self._tokens[token]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self._rule.split(text):
            ids += self._cached(word) if len(word) <= CACHED_WORD_CHARS_MAX else self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        data = word.encode("utf-8", "replace")
        if self._rule.whole_words:
            token = self._ids.get("".join([CHARACTERS[byte] for byte in data]))
            if token is not None:
                return [token]
        ids = [self._byte_ids[byte] for byte in data]
        if -1 not in ids:
            return self._merge(ids)
        # What stands on both sides of a byte without a token does not merge.
        runs = (self._merge(list(run)) for known, run in groupby(ids, lambda token: token >= 0) if known)
        return [token for run in runs for token in run]

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge the tokens of one word in place; a heap finds the next pair, so n bytes cost n log n."""
        end = len(ids)
        following = list(range(1, end + 1))
        before = list(range(-1, end - 1))
        merges, size = self._merges, self.size
        heap = [
            (merges[pair][0], place)
            for place, pair in enumerate([left * size + right for left, right in pairwise(ids)])
            if pair in merges
        ]
        heapq.heapify(heap)
        while heap:
            rank, place = heapq.heappop(heap)
            other = following[place]
            # A merge on either side may have consumed this pair since it was pushed: then its rank differs.
            found = merges.get(ids[place] * size + ids[other]) if other < end and ids[place] >= 0 else None
            if found is None or found[0] != rank:
                continue
            ids[place], ids[other] = found[1], -1
            following[place] = following[other]
            for left, right in ((before[place], place), (place, following[place])):
                if left >= 0 and right < end:
                    before[right] = left
                    fresh = merges.get(ids[left] * size + ids[right])
                    if fresh is not None:
                        heapq.heappush(heap, (fresh[0], left))
        return [token for token in ids if token >= 0]

    def _bytes_to_ids(self) -> list[int]:
        ids = [self._ids.get(character, -1) for character in CHARACTERS]
        if max(ids) < 0:
            raise ValueError("no byte has a token")
        return ids

    def _pairs(self, merges: Iterable[str]) -> dict[int, tuple[int, int]]:
        """Return a table from a pair of ids, as one number, to its rank and the merged id."""
        pairs: dict[int, tuple[int, int]] = {}
        for rank, merge in enumerate(merges):
            left, _, right = merge.partition(" ")
            try:
                pair = self._ids[left] * self.size + self._ids[right]
                pairs.setdefault(pair, (rank, self._ids[left + right]))
            except KeyError as error:
                raise ValueError(f"the merge {merge!r} needs {error.args[0]!r}, which is no token") from error
        return pairs


def _decoded(text: str) -> bytes:
    """Return the bytes of a normal token; one that is not written in the alphabet stands for its own text."""
    try:
        return bytes([BYTES[character] for character in text])
    except KeyError:
        return text.encode()
