"""The engine process, which owns the model, the queue and the batch: `python -m worker.processes.engine FD PARENT_PID`.

Its end of a socket pair is inherited as `FD`. The first message is `Open`; the model is loaded, with `Loading` on the
way, and answered by `Loaded` or `LoadFailed`. Then: carry out all commands that have arrived, step, send one `Batch`,
and again. A thread reads the socket, so that commands never wait for a step and a step never for commands. Sending
blocks when the gateway does not read: an engine that runs ahead of its readers would only fill memory.

It never outlives the gateway: the end of the socket ends it, and on Linux the kernel kills it with its parent, even
when it hangs in native code. Only the gateway stops it: a terminal's Ctrl-C and a service manager's SIGTERM do not.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import NoReturn, TypeAlias

import msgspec

from worker.engines.base import Engine, EngineSpec, LoadProgress, OnLoad
from worker.errors import EngineFailed, JobwireError, ModelError
from worker.processes import wire
from worker.processes.gc import calm_gc
from worker.processes.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Close,
    Down,
    Loaded,
    LoadFailed,
    Loading,
    Open,
    Prioritize,
    Submit,
    Up,
)
from worker.processes.parent import EXIT_ORPHANED, run
from worker.scheduler.loop import Loop

EXIT_CLOSED, EXIT_LOAD_FAILED, EXIT_GARBAGE = 0, 3, 5
"""Exit codes: closed by the gateway; no model; the gateway sent garbage."""

RECEIVE_BYTES = 1 << 16

Choose: TypeAlias = Callable[[EngineSpec], tuple[Callable[[EngineSpec, OnLoad], Engine], EngineSpec, str]]
"""Turns the wanted engine into its loader, the exact engine to load, and a sentence why that one."""

logger = logging.getLogger(__name__)


def serve(sock: socket.socket, choose: Choose) -> int:
    """Run the engine for the gateway at the other end of `sock` until `Close`; return the exit code.

    Ends the process at once when the gateway is gone. An engine that breaks raises its own exception.
    """
    commands: SimpleQueue[Down | None] = SimpleQueue()  # None wakes it up: a form is compiled
    threading.Thread(target=_read, args=(sock, commands), name="commands", daemon=True).start()
    opening = commands.get()
    assert isinstance(opening, Open), f"the first message was {type(opening).__name__}, not Open"
    engine = _load(sock, opening, choose)
    if engine is None:
        return EXIT_LOAD_FAILED
    calm_gc()
    loop = Loop(engine, opening.schedule, wake=partial(commands.put, None))
    while _carry_out(commands, loop):
        batch = loop.step(send=partial(_send, sock))
        if batch is not None:
            _send(sock, batch)
    engine.close()
    return EXIT_CLOSED


def _load(sock: socket.socket, opening: Open, choose: Choose) -> Engine | None:
    def on_load(progress: LoadProgress) -> None:
        _send(sock, Loading(progress))

    try:
        if opening.version != PROTOCOL_VERSION:
            raise EngineFailed(f"Engine process speaks version {PROTOCOL_VERSION}, the gateway {opening.version}.")
        load, spec, why = choose(opening.spec)
        engine = load(spec, on_load)
    except Exception as error:
        # The gateway stays up and reports any reason: a library's own exception is as good as one of ours.
        if not isinstance(error, JobwireError):
            logger.exception("the model cannot be loaded")
            error = ModelError(f"{type(error).__name__}: {error}")
        _send(sock, LoadFailed(error.problem()))
        return None
    info = engine.info
    _send(sock, Loaded(msgspec.structs.replace(info, details={**info.details, "chosen": why})))
    return engine


def _carry_out(commands: SimpleQueue[Down | None], loop: Loop) -> bool:
    """Carry out all commands that have arrived, waiting for one when at rest. Returns whether to go on."""
    try:
        while True:
            match commands.get(block=loop.at_rest):
                case Submit(work):
                    loop.submit(work)
                case Cancel(lease):
                    loop.cancel(lease)
                case Prioritize(lease, priority):
                    loop.prioritize(lease, priority)
                case Close():
                    return False
                case Open():
                    raise AssertionError("Open is the first message only")
    except Empty:
        return True


def _read(sock: socket.socket, commands: SimpleQueue[Down | None]) -> None:
    """Feed the queue from the socket; without a gateway this process has nothing left to do."""
    messages = wire.downward()
    try:
        while data := sock.recv(RECEIVE_BYTES):
            for message in messages.feed(data):
                commands.put(message)
    except wire.Garbage:
        logger.exception("the gateway cannot be understood")
        os._exit(EXIT_GARBAGE)
    except OSError:
        logger.exception("the socket broke")
    os._exit(EXIT_ORPHANED)


def _send(sock: socket.socket, message: Up) -> None:
    try:
        sock.sendall(wire.frame(message))
    except OSError:
        os._exit(EXIT_ORPHANED)


def main(choose: Choose) -> NoReturn:
    """Run the engine process with the arguments of the command line."""
    faulthandler.enable()
    run(lambda sock: serve(sock, choose))


if __name__ == "__main__":
    from worker.engines.choose import choose as choose_engine

    main(choose_engine)
