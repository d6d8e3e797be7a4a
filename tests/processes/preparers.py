"""Preparers for tests: the real one around a counting reader, some that misbehave, and one to talk to by hand.

Run as `command(name)` says, with the socket's fd and the parent's pid as arguments, like `worker.processes.preparer`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes.engine_processes import ROOT
from tests.scheduler.engine import CountingReader
from worker.engines.base import Bounds, EngineSpec, Generation, Prepared, Reader
from worker.errors import ModelError
from worker.processes import preparer, wire
from worker.processes.child import PREPARER_COMMAND, Child
from worker.processes.messages import (
    PROTOCOL_VERSION,
    FromHand,
    FromPreparer,
    Hand,
    HandLimits,
    OpenPreparer,
    Prepare,
    PreparerLoaded,
    SetBounds,
    ToHand,
)
from worker.requests import ResponseFormat
from worker.scheduler.works import Work

BOUNDS = Bounds(4096, 1 << 20, 1 << 20)
WAIT_S = 30.0


def command(name: str) -> tuple[str, ...]:
    """Return the command that runs the function of this name as a preparer."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {__name__} import {name}; {name}()"
    return (sys.executable, "-c", code)


class MoodyReader(CountingReader):
    """Counts characters. Some prompts end the process: "signal N", "exit N"; "loop" and "hoard" run into limits.

    "once FILE N" ends it by signal N unless there is that file, which it makes. A form whose pattern is "loop" computes
    for ever. A model that is a path ending in ".template" has a template that fails as its file says.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._template = spec.model if spec.model and spec.model.endswith(".template") else None

    def prepare(self, generation: Generation, bounds: Bounds) -> Prepared:
        word, *rest = generation.prompt.text.split(" ") or [""]
        if word == "signal":
            os.kill(os.getpid(), int(rest[0]))
        if word == "once" and not Path(rest[0]).exists():
            Path(rest[0]).touch()
            os.kill(os.getpid(), int(rest[1]))
        if word == "exit":
            os._exit(int(rest[0]))
        if word == "loop":
            endless()
        if word == "wait":
            time.sleep(float(rest[0]))
        if word == "hoard":
            bytearray(1 << 40)
        if word == "grow":
            self.grown = b"x" * (80 << 20)
        if word == "bug":
            raise ZeroDivisionError("a bug in the tokenizer")
        return super().prepare(generation, bounds)

    def try_form(self, wanted: ResponseFormat, compile_ms_max: float, mask_ms_max: float) -> None:
        if wanted.pattern == "loop":
            endless()
        if wanted.pattern == "panic":
            raise Panic("library internals at lib.rs:17")
        super().try_form(wanted, compile_ms_max, mask_ms_max)

    def try_template(self) -> None:
        if self._template is None:
            return
        match Path(self._template).read_text().split():
            case ["loop"]:
                endless()
            case ["hoard"]:
                bytearray(1 << 40)
            case ["signal", number]:
                os.kill(os.getpid(), int(number))
            case ["fail"]:
                raise ModelError("The model's chat template cannot be compiled: unexpected '}'.")


class Panic(BaseException):
    """What native libraries raise is no Exception."""


def endless() -> None:
    while True:
        pass


def choose(spec: EngineSpec) -> tuple[Callable[[EngineSpec], Reader], EngineSpec, str]:
    return read, spec, "it is the only one here"


def read(spec: EngineSpec) -> Reader:
    """A model that is a path must exist, "bug" raises anything, "endless" is never loaded."""
    if spec.model is not None and spec.model.startswith("/") and not Path(spec.model).exists():
        raise ModelError(f"There is no file {spec.model}.")
    return MoodyReader(spec)


def counting() -> None:
    """The real preparer around the counting reader."""
    preparer.main(choose)


def dying() -> None:
    """Ends at once, with a last word."""
    print("OutOfLuck: no more", file=sys.stderr)
    os._exit(7)


def fleeting() -> None:
    """Loads, and ends at once. Leaves the time of its start in the file that is its model."""
    begun_s, connection = time.monotonic(), socket.socket(fileno=int(sys.argv[1]))
    (opening,) = wire.opening().feed(connection.recv(1 << 16))
    assert opening.spec.model is not None
    with Path(opening.spec.model).open("a") as file:
        file.write(f"{begun_s}\n")
    connection.sendall(wire.frame(PreparerLoaded()))


def garbage() -> None:
    """Sends what no preparer sends."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.recv(1)
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    time.sleep(3600)


@dataclass
class ByHand:
    """A preparer, and what its hands answer. `hands` are the latest connections and messages, by lane."""

    child: Child
    answers: list[FromPreparer] = field(default_factory=list)
    hands: dict[int, tuple[socket.socket, Hand]] = field(default_factory=dict)

    def receive(self) -> FromPreparer | None:
        """Return the next message, None at the end."""
        if not self._pending:
            data, fds, _, _ = socket.recv_fds(self.child.socket, 1 << 16, 8)
            self._fds += fds
            self._pending += self._messages.feed(data)
        if not self._pending:
            return None
        message = self._pending.pop(0)
        if isinstance(message, Hand):
            connection = socket.socket(fileno=self._fds.pop(0))
            connection.settimeout(WAIT_S)
            connection.sendall(wire.frame(SetBounds(BOUNDS)))
            if message.lane in self.hands:
                self.hands[message.lane][0].close()
            self.hands[message.lane] = connection, message
        self.answers.append(message)
        return message

    def __post_init__(self) -> None:
        self._messages = wire.from_preparer()
        self._pending: list[FromPreparer] = []
        self._fds: list[int] = []

    def until_hands(self) -> ByHand:
        """Wait for both hands."""
        while len(self.hands) < 2:
            assert self.receive() is not None, "the preparer ended"
        return self

    def send(self, message: ToHand, lane: int = 0) -> None:
        self.hands[lane][0].sendall(wire.frame(message))

    def ask(self, work: Work, *, try_form: bool = False, lane: int = 0) -> list[FromHand]:
        """Have a work read; return the answers, the last of which may be missing because the hand died."""
        messages, answers = wire.from_hand(), list[FromHand]()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            self.send(Prepare(work, try_form), lane)
            while data := self.hands[lane][0].recv(1 << 20):
                answers += messages.feed(data)
                if answers and type(answers[-1]).__name__ in ("Made", "Refuse"):
                    break
        return answers

    def death(self) -> Hand:
        """Return the message about the next hand, which says what the last one died of."""
        message = self.receive()
        assert isinstance(message, Hand)
        return message

    def close(self) -> None:
        self.child.close()
        for connection, _ in self.hands.values():
            connection.close()


@contextlib.contextmanager
def preparing(
    run: Sequence[str] = PREPARER_COMMAND, spec: EngineSpec | None = None, limits: HandLimits | None = None
) -> Iterator[ByHand]:
    """Start a preparer for the block."""
    by_hand = ByHand(Child(run, threads=1, name="preparer"))
    try:
        by_hand.child.socket.settimeout(WAIT_S)
        opening = OpenPreparer(PROTOCOL_VERSION, spec or EngineSpec(), limits or HandLimits())
        by_hand.child.socket.sendall(wire.frame(opening))
        yield by_hand
    finally:
        by_hand.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def unforked() -> None:
    """The real preparer, as where there is no fork."""
    preparer.FORKS = False
    preparer.main(choose)
