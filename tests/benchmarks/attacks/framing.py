"""Frames of WebSockets: many, small, empty, in parts."""

from __future__ import annotations

import itertools
import socket

from tests.benchmarks.attacks.wire import ATTACKER, READ_BYTES, WRONG, flood, frame, greet, websocket
from tests.conformance.rawsocket import BINARY, CONTINUATION, PING, PONG, TEXT, encode

FRAMES_AT_ONCE = 20_000
MESSAGES_AT_ONCE = 500
FORBIDDEN_AT_ONCE = 30
"""More messages than a worker suffers of a kind that is forbidden."""

CLOSE_HEAD = b"\x88"
EMPTY, BYTE = encode(CONTINUATION, fin=False), encode(CONTINUATION, b"a", fin=False)


def _abuse(port: int, one: bytes, key: str | None = ATTACKER) -> None:
    """Send some messages that close the connection, and come again."""

    def conduct(plain: socket.socket) -> None:
        greet(plain, key)
        plain.sendall(one * FORBIDDEN_AT_ONCE)
        # The rest of what comes is ASCII, or nearly.
        while (data := plain.recv(READ_BYTES)) and CLOSE_HEAD not in data:
            pass

    flood(port, conduct)


def _frames(port: int, one: bytes, key: bool = True, first: bytes = b"", at_once: int = FRAMES_AT_ONCE) -> None:
    many = one * at_once
    if key:
        flood(port, websocket(lambda: itertools.repeat(many), first=first))
    flood(port, websocket(lambda: itertools.repeat(many), None, first))


def pings(port: int) -> None:
    """Send empty pings, with a key."""
    _frames(port, encode(PING))


def pings_without_key(port: int) -> None:
    """Send empty pings before a key."""
    _frames(port, encode(PING), key=False)


def full_pings(port: int) -> None:
    """Send pings of 125 bytes, with a key."""
    _frames(port, encode(PING, b"p" * 125))


def pongs(port: int) -> None:
    """Send empty pongs that nobody asked for, with a key."""
    _frames(port, encode(PONG))


def empty_fragments(port: int) -> None:
    """Send one message in empty fragments, with a key."""
    _frames(port, EMPTY, first=encode(TEXT, fin=False))


def empty_fragments_without_key(port: int) -> None:
    """Send one message in empty fragments, before a key."""
    _frames(port, EMPTY, key=False, first=encode(TEXT, fin=False))


def small_fragments(port: int) -> None:
    """Send one message in fragments of one byte, with a key."""
    _frames(port, BYTE, first=encode(TEXT, b"a", fin=False))


def small_fragments_without_key(port: int) -> None:
    """Send one message in fragments of one byte, before a key."""
    _frames(port, BYTE, key=False, first=encode(TEXT, b"a", fin=False))


def fragmented_frames(port: int) -> None:
    """Send JSON pings, each in fragments of one byte, with a key."""
    whole = b'{"type":"ping"}'
    inner = b"".join(encode(CONTINUATION, whole[i : i + 1], fin=i == len(whole) - 1) for i in range(1, len(whole)))
    _frames(port, encode(TEXT, whole[:1], fin=False) + inner, at_once=MESSAGES_AT_ONCE)


def empty_messages(port: int) -> None:
    """Send empty text messages, with a key."""
    _abuse(port, encode(TEXT))


def binary_messages(port: int) -> None:
    """Send binary messages, with a key."""
    _abuse(port, encode(BINARY, b"\x00"))


def json_pings(port: int) -> None:
    """Send JSON pings, with a key."""
    _frames(port, frame("ping"), at_once=MESSAGES_AT_ONCE)


def unknown_frames(port: int) -> None:
    """Send frames of a type that there is not, with a key."""
    _abuse(port, frame("nothing"))


def unknown_jobs(port: int) -> None:
    """Subscribe to jobs that there are not, with a key."""
    _frames(port, frame("subscribe", job_id="x" * 20), at_once=MESSAGES_AT_ONCE)


def wrong_keys(port: int) -> None:
    """Send wrong keys in frames."""
    _abuse(port, frame("auth", token=WRONG), None)


CASES = (
    pings,
    pings_without_key,
    full_pings,
    pongs,
    empty_fragments,
    empty_fragments_without_key,
    small_fragments,
    small_fragments_without_key,
    fragmented_frames,
    empty_messages,
    binary_messages,
    json_pings,
    unknown_frames,
    unknown_jobs,
    wrong_keys,
)
