"""The tokenizer of a model's folder (tokenizer.json), read through the library `tokenizers`."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from worker.engines.exllamav2.folder import Folder
from worker.engines.prompt.bpe import BYTES, END_NAMES
from worker.engines.vocabulary import commands
from worker.errors import ModelError

_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space


class FolderVocabulary:
    """A `Vocabulary`, see worker.engines.vocabulary. `rows` is the width of the model's logits.

    Raises ModelError for a tokenizer that cannot be read.
    """

    def __init__(self, folder: Folder, rows: int) -> None:
        path = folder.path / "tokenizer.json"
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_file(str(path))
            self._verbatim = Tokenizer.from_file(str(path))
        except Exception as error:
            # The library raises Exception itself.
            raise ModelError(f"{path} cannot be read: {error}") from error
        # In text that is no prompt, names of special tokens are plain words.
        self._verbatim.encode_special_tokens = True
        pieces = {token: text for text, token in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        self.size = min(max(pieces) + 1, rows)
        added = {int(entry["id"]): entry for entry in document.get("added_tokens", ())}
        named = {token: str(entry["content"]) for token, entry in added.items() if token < self.size}
        self._ids = {text: token for token, text in pieces.items()}
        self.bos_id = self._bos_id(folder)
        eos_ids = {token for token in folder.eos_ids if token < self.size}
        special = {token for token in named if added[token].get("special")} | eos_ids
        if self.bos_id is not None:
            special.add(self.bos_id)
        self.eos_ids = frozenset(eos_ids | {token for token in special if pieces.get(token) in END_NAMES})
        self.special_ids = frozenset(special)
        self.special_names = commands((*(pieces[token] for token in special if token in pieces), *named.values()))
        self.add_bos = self._adds_bos(folder)
        decoded = _Decoder(document)
        self._bytes = [
            b"" if token in special else named[token].encode() if token in named else decoded(pieces.get(token, ""))
            for token in range(self.size)
        ]
        names = max((len(text.encode()) for text in named.values()), default=0)
        self.token_text_max = max(names, *map(len, self._bytes), 1)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`, without a begin token. With `special`, names of special tokens become those."""
        tokenizer = self._tokenizer if special else self._verbatim
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, b"" for control tokens."""
        return self._bytes[token]

    def _bos_id(self, folder: Folder) -> int | None:
        token = self._ids.get(folder.token_name("bos_token"))
        if token is None:
            token = (folder.config.get("text_config") or folder.config).get("bos_token_id")
        return token if isinstance(token, int) and 0 <= token < self.size else None

    def _adds_bos(self, folder: Folder) -> bool:
        """Return the folder's own setting, else what its tokenizer does."""
        setting = folder.tokenizer.get("add_bos_token")
        if isinstance(setting, bool):
            return setting
        ids = self._tokenizer.encode("a", add_special_tokens=True).ids
        return self.bos_id is not None and ids[:1] == [self.bos_id]


class _Decoder:
    """Turns the text by which a token is written into its bytes, for byte-level BPE and for SentencePiece."""

    def __init__(self, document: dict[str, Any]) -> None:
        # The parts of a tokenizer nest; only which kinds there are matters.
        parts = json.dumps([document.get("decoder"), document.get("pre_tokenizer")])
        self._byte_level = '"ByteLevel"' in parts

    def __call__(self, piece: str) -> bytes:
        if self._byte_level:
            try:
                return bytes([BYTES[character] for character in piece])
            except KeyError:
                return piece.encode()
        byte = _BYTE_NAME.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
