"""What may disturb innocent clients: `python -m tests.benchmarks.disturbances NAME PORT` disturbs until it is killed.

A case is a function that is given the port of a worker and goes on for ever; its docstring is printed above its table
by `tests.benchmarks.undisturbed`. A new one is added to CASES.
"""

from __future__ import annotations

import json
import select
import sys
import threading
import time
from collections.abc import Callable

from tests.benchmarks.probe import MARK, TAIL_BYTES, websocket
from tests.conformance.rawsocket import PING, encode, text

PROMPT_BYTES = 990_000
"""Just below `prompt_bytes_max`, and in a message just below `frame_bytes_max`."""

FLOODING_SOCKETS = 4
PINGS_AT_ONCE = 20_000
BURN_S = 0.002


def none(port: int) -> None:
    """Do nothing: shows how much two quiet runs differ."""
    threading.Event().wait()


def large_prompt(port: int) -> None:
    """Send 1 MB prompts, one after the other, from one client."""
    plain, tail = websocket(port)
    prompt = "There was a fox who found a lantern. " * (PROMPT_BYTES // 37)
    message = text(json.dumps({"type": "create", "prompt": prompt, "max_tokens": 1}))
    while True:
        plain.sendall(message)
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


CASES: dict[str, Callable[[int], None]] = {case.__name__: case for case in (none, large_prompt, ping_flood)}


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
