"""Starts a preparer or an engine process as `serve` would, to learn whether it loads."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.processes import wire
from worker.processes.child import ENGINE_COMMAND, PREPARER_COMMAND, REAP_TIMEOUT_S, Child
from worker.processes.memory import shared_out_bytes
from worker.processes.messages import (
    FromPreparer,
    Hand,
    Loaded,
    LoadFailed,
    Loading,
    Open,
    OpenPreparer,
    PreparerLoaded,
    TemplateFailed,
    Up,
)

RECEIVE_BYTES = 1 << 16

Answer = TypeVar("Answer")
Message = TypeVar("Message", FromPreparer, Up)


@dataclass(frozen=True, slots=True)
class Rehearsed(Generic[Answer]):
    """How it went: the answer, None without one in time; how the process ended then; its memory, None if not known."""

    answer: Answer | None
    seconds: float
    memory_bytes: int | None = None
    ending: str = ""


def rehearse(opening: OpenPreparer, timeout_s: float) -> Rehearsed[PreparerLoaded | LoadFailed | TemplateFailed]:
    """Return a preparer's answer."""
    child = Child(PREPARER_COMMAND, threads=1, name="preparer")
    with contextlib.closing(child):
        went = _first(child, opening, wire.from_preparer(), timeout_s)
    assert not isinstance(went.answer, Hand), "hands come after the answer"
    return Rehearsed(went.answer, went.seconds, went.memory_bytes, went.ending)


def rehearse_engine(opening: Open, timeout_s: float) -> Rehearsed[Loaded | LoadFailed]:
    """Return an engine process's answer, once the whole model is loaded."""
    child = Child(ENGINE_COMMAND, opening.spec.threads, name="engine process")
    with contextlib.closing(child):
        went = _first(child, opening, wire.upward(), timeout_s)
    answer = went.answer
    assert answer is None or isinstance(answer, Loaded | LoadFailed), "batches follow works"
    return Rehearsed(answer, went.seconds, went.memory_bytes, went.ending)


def _first(
    child: Child, opening: Open | OpenPreparer, messages: wire.Messages[Message], timeout_s: float
) -> Rehearsed[Message]:
    """Return the first message that is not about progress."""
    began_s = time.monotonic()
    with contextlib.suppress(OSError):
        child.socket.settimeout(timeout_s)
        child.socket.sendall(wire.frame(opening))
        while data := child.socket.recv(RECEIVE_BYTES):
            for message in messages.feed(data):
                if not isinstance(message, Loading):
                    return Rehearsed(message, time.monotonic() - began_s, shared_out_bytes([child.pid]))
            left_s = began_s + timeout_s - time.monotonic()
            if left_s <= 0:
                break
            child.socket.settimeout(left_s)
    seconds = time.monotonic() - began_s
    timed_out = seconds >= timeout_s
    if not timed_out:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(REAP_TIMEOUT_S)
    return Rehearsed(None, seconds, ending=f"no answer within {timeout_s:g} s" if timed_out else child.ending())
