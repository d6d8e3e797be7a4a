"""Frames between the gateway and the processes beside it: a 4-byte big-endian length, one msgpack message. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeAlias, TypeVar

import msgspec

from worker.processes.messages import Down, FromHand, FromPreparer, OpenPreparer, ToHand, Up

HEADER_BYTES = 4

FRAME_BYTES_MAX = 1 << 28
"""Far above any message of ours (a prompt is at most a few MB), far below the value of most four random bytes."""

_encoder = msgspec.msgpack.Encoder()
Message = TypeVar("Message")
Any: TypeAlias = Down | Up | OpenPreparer | FromPreparer | ToHand | FromHand
"""A message in any direction."""


class Garbage(Exception):
    """Bytes arrived that are no message of the other side. The rest of the stream cannot be read."""


def frame(message: Any) -> bytearray:
    """Return the bytes of a message."""
    buffer = bytearray()
    _encoder.encode_into(message, buffer, HEADER_BYTES)
    buffer[:HEADER_BYTES] = (len(buffer) - HEADER_BYTES).to_bytes(HEADER_BYTES, "big")
    return buffer


class Messages(Generic[Message]):
    """Finds messages in a stream of bytes, cut anywhere. Holds at most one incomplete frame."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Message]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Append bytes and yield the messages that are complete. Raises Garbage."""
        self._buffer += data
        start = 0
        try:
            while (body := self._body(start)) is not None:
                start = body.stop
                yield self._decode(body)
        finally:
            del self._buffer[:start]

    def _body(self, start: int) -> slice | None:
        """Return the extent of the message whose frame begins at `start`, or None while it is incomplete."""
        begin = start + HEADER_BYTES
        if len(self._buffer) < begin:
            return None
        size = int.from_bytes(self._buffer[start:begin], "big")
        if size > FRAME_BYTES_MAX:
            raise Garbage(f"a frame of {size} bytes was announced, more than {FRAME_BYTES_MAX}")
        return slice(begin, begin + size) if len(self._buffer) >= begin + size else None

    def _decode(self, body: slice) -> Message:
        try:
            return self._decoder.decode(self._buffer[body])
        except msgspec.MsgspecError as error:
            raise Garbage(f"a frame is not a message: {error}") from error


def downward() -> Messages[Down]:
    """Return a reader of the gateway's messages."""
    return Messages(msgspec.msgpack.Decoder[Down](Down))


def upward() -> Messages[Up]:
    """Return a reader of an engine process's messages."""
    return Messages(msgspec.msgpack.Decoder[Up](Up))


def from_preparer() -> Messages[FromPreparer]:
    """Return a reader of a preparer's messages."""
    return Messages(msgspec.msgpack.Decoder[FromPreparer](FromPreparer))


def opening() -> Messages[OpenPreparer]:
    """Return a reader of the gateway's one message to a preparer."""
    return Messages(msgspec.msgpack.Decoder(OpenPreparer))


def to_hand() -> Messages[ToHand]:
    """Return a reader of the gateway's messages to a hand."""
    return Messages(msgspec.msgpack.Decoder[ToHand](ToHand))


def from_hand() -> Messages[FromHand]:
    """Return a reader of a hand's messages."""
    return Messages(msgspec.msgpack.Decoder[FromHand](FromHand))
