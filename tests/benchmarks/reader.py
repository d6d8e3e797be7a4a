"""The clients of the delivery benchmark: one process that reads thousands of streams and does as little else as it can.

`python -m tests.benchmarks.reader`: takes one `Task` per line as JSON, answers each with one `Result`. Nothing is
parsed but what is needed: a token is 16 digits and a space, a frame begins with what its dialect begins with.
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.conformance.rawsocket import handshake, text

TOKEN = re.compile(rb"(\d{16}) ")
FRAME = re.compile(rb'"type":"token"|"chat.completion.chunk"')
TAIL_BYTES = 24
RECEIVE_BYTES = 1 << 18
START_TIMEOUT_S = 60.0
CREATES_PER_BURST = 32


@dataclass(frozen=True)
class Task:
    """Read `streams` jobs, `jobs_per_socket` on each connection, for `seconds` once all of them flow.

    `pid` is the process whose CPU time and memory are of interest, `engine_pid` its engine process (0: it has none).
    `per_s` 0 measures idle connections: WebSockets without a job, and event streams that all follow one job on which
    nothing comes.
    """

    port: int
    pid: int
    way: str
    streams: int
    per_s: float
    seconds: float
    jobs_per_socket: int = 1
    fields: dict[str, int] = field(default_factory=dict)
    engine_pid: int = 0


@dataclass
class Result:
    """What came in the window. Latencies are of single tokens, from the engine's step to this process."""

    tokens: int = 0
    frames: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    engine_cpu_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    bytes_per_connection: float = 0.0


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all threads, to the nanosecond. No process, 0, has used none."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def ended_cpu_s(pid: int) -> float:
    """CPU seconds of its children that have ended, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Stream:
    """One connection: its socket, the end of what it brought, whether it brought anything, and how many tokens."""

    __slots__ = ("answered", "socket", "tail", "tokens")

    def __init__(self, plain: socket.socket) -> None:
        self.socket = plain
        self.tail = b""
        self.answered = False
        self.tokens = 0


def _connect(port: int) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


def _shake_hands(plain: socket.socket) -> None:
    plain.sendall(handshake())
    head = b""
    while b"\r\n\r\n" not in head:
        data = plain.recv(4096)
        assert data, "no handshake"
        head += data
    assert b" 101 " in head, head


def _creates(task: Task, names: list[str]) -> bytes:
    """What a connection says to have its jobs."""
    if task.way == "ws":
        return b"".join(text(json.dumps({"type": "create", **_body(task, name)})) for name in names if task.per_s)
    body = json.dumps(_body(task, names[0]))
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def _body(task: Task, name: str) -> dict[str, object]:
    return {"job_id": name, "prompt": f"{task.per_s} per second", "raw": True, "max_tokens": 30_000, **task.fields}


class Reader:
    """All connections of one task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.poll = select.epoll()
        self.streams: dict[int, Stream] = {}
        self.result = Result()
        self.latencies: list[int] = []
        self.flowing = 0

    def open(self, number: int) -> None:
        """Open all connections; jobs begin as they are accepted."""
        run = f"{time.time_ns():x}-{number:04d}"
        idle = not self.task.per_s
        names = [f"bench-{run}-{0 if idle else index:06d}" for index in range(self.task.streams)]
        step = self.task.jobs_per_socket
        streams = []
        for _ in range(0, len(names), step):
            stream = Stream(_connect(self.task.port))
            streams.append(stream)
            if self.task.way == "ws":
                _shake_hands(stream.socket)
            stream.socket.setblocking(False)
            self.streams[stream.socket.fileno()] = stream
            self.poll.register(stream.socket, select.EPOLLIN)
        for place, stream in enumerate(streams):
            stream.socket.sendall(_creates(self.task, names[place * step : (place + 1) * step]))
            if place % CREATES_PER_BURST == 0:
                # Those that flow already must not pile up.
                self.read_for(0)

    def read_for(self, seconds: float) -> None:
        """Read what comes, for a time."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            for fileno, _ in self.poll.poll(max(left, 0)):
                self._take(self.streams[fileno])
            if left <= 0:
                return

    def _take(self, stream: Stream) -> None:
        data = stream.socket.recv(RECEIVE_BYTES)
        now_us = time.monotonic_ns() // 1000
        assert data, f"the server closed a stream: {stream.tail!r}"
        stream.answered = True
        whole = stream.tail + data
        stamps = TOKEN.findall(whole)
        # What is kept for the next time must not be found twice.
        end = max(whole.rfind(b" ") + 1, len(whole) - TAIL_BYTES)
        stream.tail = whole[end:]
        if stamps:
            self.flowing += stream.tokens == 0
            stream.tokens += len(stamps)
            self.result.tokens += len(stamps)
            self.latencies += [now_us - int(one) for one in stamps]
        self.result.frames += len(FRAME.findall(data))

    def wait_until_all_are_answered(self) -> None:
        """Read until every connection has brought something, which is a head on those that are idle."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(stream.answered for stream in self.streams.values()):
            assert time.monotonic() < deadline, "streams are not answered"
            self.read_for(0.2)

    def wait_until_all_flow(self) -> None:
        """Read until every connection has brought a token, and for a moment more."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.flowing < len(self.streams):
            assert time.monotonic() < deadline, f"{self.flowing} of {len(self.streams)} streams flow"
            self.read_for(0.05)
        self.read_for(0.5)

    def measure(self) -> Result:
        """Read for the time of the task and measure."""
        self.result, self.latencies = Result(), []
        begun, before_s, engine_before_s = time.monotonic(), cpu_s(self.task.pid), cpu_s(self.task.engine_pid)
        self.read_for(self.task.seconds)
        result = self.result
        result.cpu_s, result.wall_s = cpu_s(self.task.pid) - before_s, time.monotonic() - begun
        result.engine_cpu_s = cpu_s(self.task.engine_pid) - engine_before_s
        self.latencies.sort()
        result.p50_ms = self.latencies[len(self.latencies) // 2] / 1000
        result.p99_ms = self.latencies[len(self.latencies) * 99 // 100] / 1000
        return result

    def close(self) -> None:
        """Lose all connections."""
        for stream in self.streams.values():
            stream.socket.close()
        self.poll.close()


def perform(task: Task, number: int) -> Result:
    """Do one task."""
    before = rss_bytes(task.pid)
    reader = Reader(task)
    try:
        reader.open(number)
        if not task.per_s:
            if task.way == "sse":
                reader.wait_until_all_are_answered()
            reader.read_for(task.seconds)
            return Result(bytes_per_connection=(rss_bytes(task.pid) - before) / len(reader.streams))
        reader.wait_until_all_flow()
        return reader.measure()
    finally:
        reader.close()


def main() -> None:
    """Do tasks until there are no more."""
    gc.disable()
    for number, line in enumerate(sys.stdin):
        result = perform(Task(**json.loads(line)), number)
        print(json.dumps(asdict(result)), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
