"""What may disturb innocent clients: `python -m tests.benchmarks.disturbances NAME PORT` disturbs until it is killed.

A case is a function that is given the port of a worker and goes on for ever; its docstring is printed above its table
by `tests.benchmarks.undisturbed`. A new one is added to CASES.
"""

from __future__ import annotations

import itertools
import json
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.benchmarks.probe import MARK, TAIL_BYTES, websocket
from tests.conformance.hostile_forms import FORMS, varied
from tests.conformance.rawsocket import PING, encode, text

PROMPT_BYTES = 990_000
"""Just below `prompt_bytes_max`, and in a message just below `frame_bytes_max`."""

WORD_LETTERS = 30_000
FLOODING_SOCKETS = 4
PINGS_AT_ONCE = 20_000
BURN_S = 0.002


def none(port: int) -> None:
    """Do nothing: shows how much two quiet runs differ."""
    threading.Event().wait()


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
    plain, tail = websocket(port)
    for body in bodies:
        plain.sendall(text(json.dumps({"type": "create", "max_tokens": 1, **body})))
        while not {b"end", b"err"} & set(MARK.findall(tail)):
            data = plain.recv(1 << 16)
            assert data, "the worker closed the connection"
            tail = tail[-TAIL_BYTES:] + data
        tail = b""


def ping_flood(port: int) -> None:
    """Send empty pings, as fast as they go, on four sockets."""
    message = encode(PING) * PINGS_AT_ONCE
    left = {websocket(port)[0]: memoryview(message) for _ in range(FLOODING_SOCKETS)}
    for plain in left:
        plain.setblocking(False)
    while True:
        readable, writable, _ = select.select([*left], [*left], [])
        for plain in readable:
            assert plain.recv(1 << 18), "the worker closed the connection"
        for plain in writable:
            left[plain] = left[plain][plain.send(left[plain]) :] or memoryview(message)


def burn(share: float) -> None:
    """Use a share of one core and disturb nobody otherwise: what a case costs by its CPU time alone."""
    begun_s, number = time.monotonic(), 0
    while True:
        owed_s = share * (time.monotonic() - begun_s) - time.thread_time()
        if owed_s <= 0:
            time.sleep(BURN_S)
            continue
        until_s = time.thread_time() + min(owed_s, BURN_S)
        while time.thread_time() < until_s:
            number = sum(range(200), number & 1)


CASES: dict[str, Callable[[int], None]] = {
    case.__name__: case for case in (none, large_prompt, long_word, hostile_forms, ping_flood)
}


def main() -> None:
    """Print a line, then disturb."""
    name, value = sys.argv[1:]
    print("begun", flush=True)
    if name == burn.__name__:
        burn(float(value))
    else:
        CASES[name](int(value))


if __name__ == "__main__":
    main()
