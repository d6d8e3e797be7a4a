"""Engine processes for tests: the real one around a counting engine, and some that misbehave.

Run as `command(name)` says, with the socket's fd and the parent's pid as arguments, like `worker.processes.engine`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.scheduler.engine import CountingEngine, text_of
from worker.engines.base import Engine, EngineSpec, LoadProgress, OnLoad, Prepared, StepEvent
from worker.errors import ModelError
from worker.processes import engine as engine_process
from worker.processes import wire
from worker.processes.messages import Loaded, Loading

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 0.002


def command(name: str) -> tuple[str, ...]:
    """Return the command that runs the function of this name as an engine process."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {__name__} import {name}; {name}()"
    return (sys.executable, "-c", code)


class RealTimeEngine(CountingEngine):
    """Counts in real time. The prompts "hang" and "crash" do so in a step, "hang early" and "crash early" before it.

    Model "clingy" never closes; one that is a path leaves a file beside it when it is closed.
    """

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(slots=spec.slots, kv_blocks=1 << 20, on_step=lambda _: time.sleep(STEP_S))
        self.spec = spec

    def admit(self, prepared: Prepared) -> int:
        print("admitting", prepared.lease, flush=True)
        if text_of(prepared) == "hang early":
            time.sleep(3600)
        if text_of(prepared) == "crash early":
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().admit(prepared)

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:
        prompts = {text_of(sequence.prepared) for sequence in self.sequences.values()}
        if "hang" in prompts:
            time.sleep(3600)
        if "crash" in prompts:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().step(prefill_tokens_max)

    def close(self) -> None:
        if self.spec.model == "clingy":
            time.sleep(3600)
        if self.spec.model is not None:
            Path(self.spec.model + ".closed").touch()


def choose(spec: EngineSpec) -> tuple[Callable[[EngineSpec, OnLoad], Engine], EngineSpec, str]:
    return load, spec, "it is the only one here"


def load(spec: EngineSpec, on_load: OnLoad) -> Engine:
    """Load in four stages. A model that is a path must exist, "endless" is never loaded, "bug" raises anything."""
    if spec.model is not None and spec.model.startswith("/") and not Path(spec.model).exists():
        raise ModelError(f"There is no file {spec.model}.")
    if spec.model == "bug":
        raise ZeroDivisionError("a bug in the engine")
    for done in range(1, 5):
        on_load(LoadProgress("layers", done, 4, done * 1000))
    if spec.model == "endless":
        time.sleep(3600)
    return RealTimeEngine(spec)


def counting() -> None:
    """The real engine process around the counting engine."""
    engine_process.main(choose)


def with_child() -> None:
    """The same, with a process of its own that would outlive it."""
    print("child", subprocess.Popen(["sleep", "3600"]).pid, flush=True)
    engine_process.main(choose)


def _socket() -> socket.socket:
    return socket.socket(fileno=int(sys.argv[1]))


def garbage() -> None:
    """Sends what no engine process sends."""
    connection = _socket()
    connection.recv(1)
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    time.sleep(3600)


def mute() -> None:
    """Never says anything."""
    connection = _socket()
    time.sleep(3600)
    connection.close()


def dying() -> None:
    """Ends at once, with a last word."""
    print("Traceback: it hurts", file=sys.stderr)
    print("OutOfLuck: no more", file=sys.stderr)
    os._exit(7)


def parting() -> None:
    """Closes its connection, but does not end."""
    _socket().close()
    time.sleep(3600)


def garbage_later() -> None:
    """Is ready, then sends what no engine process sends."""
    connection = _socket()
    connection.sendall(wire.frame(Loaded(RealTimeEngine(EngineSpec()).info)) + b"\xff" * 100)
    time.sleep(3600)


def loading_twice() -> None:
    """Is ready, then loads again, which no engine process does."""
    connection = _socket()
    connection.sendall(wire.frame(Loaded(RealTimeEngine(EngineSpec()).info)))
    connection.sendall(wire.frame(Loading(LoadProgress("layers", 1, 4))))
    time.sleep(3600)
