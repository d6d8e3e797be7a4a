"""A tokenizer of bytes: enough of a vocabulary to test what engines share, without a model."""

from __future__ import annotations

BOS, EOS, EOT, USER = 256, 257, 258, 259
NAMES = {"<bos>": BOS, "<eos>": EOS, "<eot>": EOT, "<user>": USER}


class ByteVocabulary:
    """One token per byte (id is the byte), four special tokens, and `words` from id 260 on, used longest first."""

    def __init__(self, words: tuple[bytes, ...] = (), *, add_bos: bool = True) -> None:
        self.words = words
        self.size = 260 + len(words)
        self.bos_id: int | None = BOS
        self.eos_ids = frozenset({EOS, EOT})
        self.add_bos = add_bos
        self.special_ids = frozenset({BOS, EOS, EOT, USER})
        self.special_names = frozenset(NAMES)
        self.token_text_max = max([6, *map(len, words)])

    def encode(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        pieces = {word: 260 + number for number, word in enumerate(self.words)}
        if special:
            pieces |= {name.encode(): token for name, token in NAMES.items()}
        ordered = sorted(pieces, key=len, reverse=True)
        ids: list[int] = []
        while data:
            piece = next((piece for piece in ordered if data.startswith(piece)), data[:1])
            ids.append(pieces.get(piece, piece[0]))
            data = data[len(piece) :]
        return ids

    def token_bytes(self, token: int) -> bytes:
        if token < 256:
            return bytes([token])
        return b"" if token < 260 else self.words[token - 260]
