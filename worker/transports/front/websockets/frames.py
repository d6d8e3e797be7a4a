"""WebSocket frames as bytes (RFC 6455, section 5.2): the heads of those that are sent, and of those that come in."""

from __future__ import annotations

import codecs
import struct

TEXT_FIN = 0x81
HEAD_16, HEAD_64 = struct.Struct("!BBH"), struct.Struct("!BBQ")
PING = b"\x89\x00"
SIZES = {126: (2, 126), 127: (8, 1 << 16)}
"""In how many bytes a length is given that does not fit into the second byte, and the least one that is given so."""

SIZE_END = 1 << 63
WRONG = -1


def head(size: int) -> bytes:
    """Return the head of a whole text message of `size` bytes, as a server sends it."""
    if size < 126:
        return bytes((TEXT_FIN, size))
    if size < 1 << 16:
        return HEAD_16.pack(TEXT_FIN, 126, size)
    return HEAD_64.pack(TEXT_FIN, 127, size)


class Fragments:
    """A message that comes in pieces. Text is checked piece by piece, so that its first wrong byte ends it."""

    __slots__ = ("_data", "_decoder", "_texts")

    def __init__(self, *, is_text: bool) -> None:
        self._data = bytearray()
        self._texts: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")() if is_text else None

    def add(self, data: bytes | bytearray, *, last: bool) -> None:
        """Add a piece. Raises UnicodeDecodeError."""
        if self._decoder is None:
            self._data += data
        else:
            self._texts.append(self._decoder.decode(data, last))

    def whole(self) -> str | bytes:
        """Return the message, after its last piece."""
        return bytes(self._data) if self._decoder is None else "".join(self._texts)


class LengthCheck:
    """Looks at the heads of frames that pass: a length must be given in as few bytes as it needs.

    `websockets` takes any, and the RFC does not: two ways to write a frame are one too many.
    """

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        # The part of a head that has come, and how much is left of the mask and the payload behind the last one.
        self._head = b""
        self._left = 0

    def valid(self, data: bytes) -> int:
        """Return how many of the next bytes may be read: all of them, unless a length in them is wrong."""
        place = 0
        while place < len(data):
            if self._left:
                passed = min(self._left, len(data) - place)
                self._left -= passed
                place += passed
                continue
            self._head += data[place : place + 1]
            left = _behind(self._head)
            if left == WRONG:
                return place
            place += 1
            if left is not None:
                self._head, self._left = b"", left
        return place


def _behind(head: bytes) -> int | None:
    """Return how many bytes belong to a frame behind its head; None if the head is not whole, WRONG for its length."""
    if len(head) < 2:
        return None
    mask_bytes, size = (4 if head[1] & 0x80 else 0), head[1] & 0x7F
    if size in SIZES:
        size_bytes, least = SIZES[size]
        if len(head) < 2 + size_bytes:
            return None
        size = int.from_bytes(head[2:], "big")
        if not least <= size < SIZE_END:
            return WRONG
    return mask_bytes + size
