"""What an innocent client feels: `python -m tests.benchmarks.probe KIND PORT`; kinds: stream, health, steps.

It has a key of its own, which is no secret here (`tests/benchmarks/attacks/wire.py`).

Reads one task per line from its input, how many seconds to measure, and answers each with one line of JSON. It is a
process with one thread that does nothing but wait for a socket, so that no work of the measuring side delays it. What
is left is the wait for a core, where others compute: the kernel counts it (the second number of `schedstat`), and it is
subtracted from when something arrived.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.attacks.wire import AGAIN_S, INNOCENT, bearer, greet, request
from tests.conformance.rawsocket import text
from worker.scheduler.rates import GAP_WINDOW_S

PATIENCE_S = 120.0
"""Longest silence that is measured. More of it is a failure."""

HEALTH_PAUSE_S = 0.01
"""Pause between two questions for the worker's health."""

MARK = re.compile(rb'"type":"(tok|end|err)')
"""Where a frame of interest begins. All marks are of one length, so that a tail of one byte less holds none."""

TAIL_BYTES = len(b'"type":"tok') - 1
STEPS_PAUSE_S = 0.25


class Arrivals:
    """A clock for what arrives, without the time in which this thread was ready and had no core."""

    def __init__(self) -> None:
        self._path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._waited_ns = 0
        self.now_s()

    def now_s(self) -> float:
        """Return when the thread would have seen what it sees now, had it not waited for a core since the last call."""
        waited_ns = int(self._path.read_bytes().split()[1])
        own_ns, self._waited_ns = waited_ns - self._waited_ns, waited_ns
        return time.monotonic() - own_ns / 1e9


def connect(port: int) -> socket.socket:
    """Connect, with much patience."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


class Stream:
    """A client with one job at a time, which is followed by another one as long as it is needed."""

    def __init__(self, port: int) -> None:
        self._tokens = min(_context_tokens(port) - 100, 32_000)
        self._socket, self._tail = connect(port), b""
        greet(self._socket, INNOCENT)
        self._name = ""
        self._create()

    def _create(self) -> None:
        self._name = f"innocent-{os.getpid()}-{time.monotonic_ns()}"
        asked = {"job_id": self._name, "prompt": "Tell me a story.", "max_tokens": self._tokens, "ignore_eos": True}
        self._socket.sendall(text(json.dumps({"type": "create", **asked})))

    def read(self) -> list[bytes]:
        """Wait for bytes and return the marks in them."""
        data = self._socket.recv(1 << 16)
        assert data, "the worker closed the stream"
        whole = self._tail + data
        self._tail = whole[-TAIL_BYTES:]
        marks = MARK.findall(whole)
        assert b"err" not in marks, whole
        return marks

    def measure(self, seconds: float) -> dict[str, float]:
        """Return the largest gap between token frames, in ms, and how many frames came."""
        while b"tok" not in self.read():
            pass
        arrivals, frames, largest_s = Arrivals(), 0, 0.0
        last_s: float | None = arrivals.now_s()
        until_s = time.monotonic() + seconds
        # A silence that began in time is waited for to its end.
        while last_s is None or last_s < until_s:
            marks, now_s = self.read(), arrivals.now_s()
            if b"tok" in marks:
                frames += marks.count(b"tok")
                largest_s = max(largest_s, now_s - last_s) if last_s is not None else largest_s
                last_s = now_s
            if b"end" in marks:
                # The next job's prefill is no gap.
                self._create()
                last_s = None
        return {"gap_ms": 1e3 * largest_s, "frames": frames}

    def close(self) -> None:
        """Cancel the job and wait for its end."""
        self._socket.sendall(text(json.dumps({"type": "cancel", "job_id": self._name})))
        while b"end" not in self.read():
            pass
        self._socket.close()


class Health:
    """A client that asks for the worker's health over and over, on one connection."""

    _QUESTION = request("GET /health", bearer(INNOCENT))

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = connect(port)

    def _ask(self) -> bytes:
        """Ask until there is an answer. Who is cut off or refused comes again: that is a wait, too."""
        until_s, answer = time.monotonic() + PATIENCE_S, b""
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                self._socket.sendall(self._QUESTION)
                answer = self._answer()
                if b" 200 " in answer[:20]:
                    return answer.partition(b"\r\n\r\n")[2]
            self._socket.close()
            time.sleep(AGAIN_S)
            self._socket = connect(self._port)
        raise AssertionError(f"no answer in {PATIENCE_S} s, at last {answer!r}")

    def _answer(self) -> bytes:
        """Return one answer; what there is of it, if the worker closes."""
        answer, size = b"", None
        while size is None or len(answer) < size:
            data = self._socket.recv(1 << 16)
            if not data:
                break
            answer += data
            head, found, _ = answer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if found and length:
                size = len(head) + len(found) + int(length[1])
        return answer

    def measure(self, seconds: float) -> dict[str, float]:
        """Return percentiles of the time until an answer, in ms, and how many came."""
        arrivals, waits_s = Arrivals(), []
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            arrivals.now_s()
            asked_s = time.monotonic()
            self._ask()
            waits_s.append(arrivals.now_s() - asked_s)
            time.sleep(HEALTH_PAUSE_S)
        waits_s.sort()
        p50, p99 = (1e3 * waits_s[len(waits_s) * percent // 100] for percent in (50, 99))
        return {"p50_ms": p50, "p99_ms": p99, "slowest_ms": 1e3 * waits_s[-1], "answers": len(waits_s)}

    def facts(self) -> dict[str, Any]:
        """Return what the worker answers."""
        return dict(json.loads(self._ask()))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Steps(Health):
    """A client that asks now and then for the longest time between two steps of the engine."""

    _QUESTION = request("GET /v1/stats", bearer(INNOCENT))

    def measure(self, seconds: float) -> dict[str, float]:
        """Return the longest, in ms. The answers look back for some time: the first ones do not count."""
        begun_s, run_s, longest_ms = time.monotonic(), 0.0, 0.0
        while run_s < seconds:
            time.sleep(min(STEPS_PAUSE_S, seconds / 10))
            run_s = time.monotonic() - begun_s
            if run_s > min(2 * GAP_WINDOW_S, seconds / 2):
                longest_ms = max(longest_ms, float(self.facts()["step_gap_ms"]))
        return {"step_gap_ms": longest_ms}


def _context_tokens(port: int) -> int:
    health = Health(port)
    found = health.facts()["context_tokens"]
    health.close()
    return int(found)


def main() -> None:
    """Measure until there are no more tasks."""
    kinds: dict[str, type[Stream | Health]] = {"stream": Stream, "health": Health, "steps": Steps}
    kind, port = kinds[sys.argv[1]], int(sys.argv[2])
    gc.disable()
    for line in sys.stdin:
        probe = kind(port)
        found = probe.measure(float(line))
        probe.close()
        print(json.dumps(found), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
