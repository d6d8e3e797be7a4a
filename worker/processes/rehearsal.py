"""Starts a preparer as `serve` would, to learn whether it loads."""

from __future__ import annotations

import contextlib

from worker.processes import wire
from worker.processes.child import PREPARER_COMMAND, Child
from worker.processes.memory import shared_out_bytes
from worker.processes.messages import Hand, LoadFailed, OpenPreparer, PreparerLoaded, TemplateFailed

RECEIVE_BYTES = 1 << 16


def rehearse(
    opening: OpenPreparer, timeout_s: float
) -> tuple[PreparerLoaded | LoadFailed | TemplateFailed | None, int | None]:
    """Return a preparer's answer, None without one in time, and the memory that it needs, if that is known."""
    child = Child(PREPARER_COMMAND, threads=1, name="preparer")
    with contextlib.closing(child):
        child.socket.settimeout(timeout_s)
        messages = wire.from_preparer()
        with contextlib.suppress(OSError):
            child.socket.sendall(wire.frame(opening))
            while data := child.socket.recv(RECEIVE_BYTES):
                for message in messages.feed(data):
                    assert not isinstance(message, Hand), "hands come after the answer"
                    return message, shared_out_bytes([child.pid])
    return None, None
