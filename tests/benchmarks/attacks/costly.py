"""Prompts and forms that cost much to prepare: from one client, one after the other."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.attacks.wire import frame, greet
from tests.benchmarks.probe import MARK, TAIL_BYTES
from tests.conformance.hostile_forms import FORMS, varied

PROMPT_BYTES = 990_000
"""Just below `prompt_bytes_max`, and in a message just below `frame_bytes_max`."""

WORD_LETTERS = 30_000


def large_prompt(port: int) -> None:
    """Send 1 MB prompts, one after the other, from one client."""
    prompt = "There was a fox who found a lantern. " * (PROMPT_BYTES // 37)
    _one_after_the_other(port, ({"prompt": f"{number} {prompt}"} for number in itertools.count()))


def long_word(port: int) -> None:
    """Send prompts of one word of 30,000 letters, one after the other, from one client."""
    _one_after_the_other(port, ({"prompt": f"{number}{'a' * WORD_LETTERS}"} for number in itertools.count()))


def hostile_forms(port: int) -> None:
    """Ask for hostile response formats, each another one, one after the other, from one client."""
    forms = itertools.cycle(FORMS.values())
    bodies = ({"prompt": "x", "response_format": varied(next(forms), number)} for number in itertools.count())
    _one_after_the_other(port, bodies)


def _one_after_the_other(port: int, bodies: Iterator[dict[str, Any]]) -> None:
    """Create a job of each body, and wait for its end or its refusal."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        greet(plain)
        tail = b""
        for body in bodies:
            plain.sendall(frame("create", max_tokens=1, **body))
            while not {b"end", b"err"} & set(MARK.findall(tail)):
                data = plain.recv(1 << 16)
                assert data, "the worker closed the connection"
                tail = tail[-TAIL_BYTES:] + data
            tail = b""


CASES = (large_prompt, long_word, hostile_forms)
