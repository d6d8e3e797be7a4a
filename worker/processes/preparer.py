"""The preparer, which reads no stranger's byte: it loads once and forks the hands that do.

Run as `python -P -m worker.processes.preparer FD PARENT_PID`. Its end of a socket pair is inherited as `FD`; the first
and only message is `OpenPreparer`. It loads vocabulary, chat template and grammar compiler (`engines.base.Reader`) and
answers `PreparerLoaded`, or `LoadFailed` or `TemplateFailed`. Then it forks two hands, one for short works and one for
the rest, and sends the gateway a connection to each. It waits for one to die, and replaces it at once. In the field's
words it is a zygote: memory is shared copy-on-write, and a fork costs one to three milliseconds.

Each hand has a connection of its own, so nothing of a dead one is left in it, and its end is that hand's end.

Where there is no fork, the preparer is the one hand itself, and is started anew when it dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from worker.engines.base import EngineSpec, Reader
from worker.errors import EngineFailed, JobwireError, ModelError, Problem
from worker.processes import hand, wire
from worker.processes.child import FORKS
from worker.processes.gc import calm_gc
from worker.processes.messages import (
    PROTOCOL_VERSION,
    FromPreparer,
    Hand,
    HandLimits,
    LoadFailed,
    OpenPreparer,
    PreparerLoaded,
    TemplateFailed,
)
from worker.processes.parent import EXIT_BROKEN, EXIT_ORPHANED, run

EXIT_LOAD_FAILED = 3
"""Exit code of a preparer that has nothing to read with."""

LANES = 2
"""Hands: one for short works, one for the rest."""

TEMPLATE_TIMEOUT_S = 2.0
"""How long a chat template may take for a small conversation."""

QUICK_DEATH_S, QUICK_DEATHS_MAX, PAUSE_S = 0.05, 10, 0.1
"""After this many hands in a row that lived shorter than that, something is wrong with all of them: pause."""

Choose: TypeAlias = Callable[[EngineSpec], tuple[Callable[[EngineSpec], Reader], EngineSpec, str]]
"""Turns the wanted engine into the function that reads its vocabulary, the exact engine, and the reason for it."""

logger = logging.getLogger(__name__)


def serve(sock: socket.socket, choose: Choose) -> int:
    """Load for the gateway at the other end of `sock` and keep hands running until it is gone; return the exit code."""
    opening = _opening(sock)
    loaded = _load(opening, choose)
    if isinstance(loaded, LoadFailed | TemplateFailed):
        _send(sock, loaded)
        return EXIT_LOAD_FAILED
    calm_gc()
    _send(sock, PreparerLoaded())
    if not FORKS:
        theirs, mine = socket.socketpair()
        _send(sock, Hand(os.getpid(), 0), theirs)
        return hand.serve(mine, loaded, opening.limits, os.getppid())
    return _Keeper(sock, loaded, opening.limits).run()


def _opening(sock: socket.socket) -> OpenPreparer:
    messages = wire.opening()
    while data := sock.recv(1 << 16):
        for message in messages.feed(data):
            return message
    os._exit(EXIT_ORPHANED)


def _load(opening: OpenPreparer, choose: Choose) -> Reader | LoadFailed | TemplateFailed:
    """Return the reader, warm, or why there is none."""
    try:
        if opening.version != PROTOCOL_VERSION:
            raise EngineFailed(f"Preparer speaks version {PROTOCOL_VERSION}, the gateway {opening.version}.")
        read, spec, _ = choose(opening.spec)
        reader = read(spec)
    except Exception as error:
        # The gateway stays up and reports any reason: a library's own exception is as good as one of ours.
        if not isinstance(error, JobwireError):
            logger.exception("the model cannot be loaded")
            error = ModelError(f"{type(error).__name__}: {error}")
        return LoadFailed(error.problem())
    problem = template_problem(reader, opening.limits.prepare_memory_bytes_max)
    if problem is not None:
        return TemplateFailed(problem)
    # Compiled here, all hands share it; that it ends within limits is known by now.
    with contextlib.suppress(JobwireError):
        reader.try_template()
    return reader


# ---- the template ----------------------------------------------------------------------------------------------------


def template_problem(reader: Reader, memory_bytes_max: int) -> Problem | None:
    """Return what is wrong with a chat template: it is tried in a process of its own, which may die of it.

    Even compiling needs limits: Jinja computes constant parts then.
    """
    if not FORKS:
        return _try(reader)
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        _try_and_exit(reader, memory_bytes_max, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        detail = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return None
    return ModelError(detail or _template_death(status, memory_bytes_max)).problem()


def _try_and_exit(reader: Reader, memory_bytes_max: int, sending: int) -> NoReturn:
    code = 1
    try:
        hand.confine(memory_bytes_max)
        signal.setitimer(signal.ITIMER_REAL, TEMPLATE_TIMEOUT_S)
        problem = _try(reader)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if problem is None:
            code = 0
        else:
            os.write(sending, problem.detail.encode()[:4096])
    finally:
        os._exit(code)


def _try(reader: Reader) -> Problem | None:
    try:
        reader.try_template()
    except JobwireError as error:
        return error.problem()
    except MemoryError:
        return ModelError("The model's chat template needs too much memory for a small conversation.").problem()
    except Exception as error:
        return ModelError(f"The model's chat template fails: {type(error).__name__}: {error}").problem()
    return None


def _template_death(status: int, memory_bytes_max: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        return f"The model's chat template takes over {TEMPLATE_TIMEOUT_S:g} s for a small conversation."
    cause = f"signal {number}" if number else f"exit code {os.WEXITSTATUS(status)}"
    return f"The model's chat template ended the process that tried it within {memory_bytes_max} bytes ({cause})."


# ---- the hands -------------------------------------------------------------------------------------------------------


class _Keeper:
    """Forks a hand per lane and replaces each that dies. Single-threaded, as whatever forks has to be."""

    def __init__(self, sock: socket.socket, reader: Reader, limits: HandLimits) -> None:
        self._sock = sock
        self._reader = reader
        self._limits = limits
        self._lanes: dict[int, int] = {}
        self._forked_s: dict[int, float] = {}
        self._quick_deaths = 0

    def run(self) -> int:
        """Keep the hands running until the gateway is gone; return the exit code."""
        for lane in range(LANES):
            self._fork(lane)
        while True:
            pid, status = os.waitpid(-1, 0)
            lane = self._lanes.pop(pid)
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
            if exit_code == EXIT_ORPHANED:
                return EXIT_ORPHANED
            self._pace(pid)
            self._fork(lane, number, exit_code)

    def _pace(self, pid: int) -> None:
        quick = time.monotonic() - self._forked_s.pop(pid) < QUICK_DEATH_S
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        if self._quick_deaths > QUICK_DEATHS_MAX:
            time.sleep(PAUSE_S)

    def _fork(self, lane: int, number: int = 0, exit_code: int = 0) -> None:
        theirs, mine = socket.socketpair()
        parent_pid, pid = os.getpid(), os.fork()
        if pid == 0:
            theirs.close()
            self._sock.close()
            self._become_hand(mine, parent_pid)
        mine.close()
        self._lanes[pid], self._forked_s[pid] = lane, time.monotonic()
        _send(self._sock, Hand(pid, lane, number, exit_code), theirs)

    def _become_hand(self, mine: socket.socket, parent_pid: int) -> NoReturn:
        code = EXIT_BROKEN
        try:
            code = hand.serve(mine, self._reader, self._limits, parent_pid)
        except (BrokenPipeError, ConnectionResetError):
            code = EXIT_ORPHANED
        except BaseException:
            logger.exception("a hand broke")
        finally:
            os._exit(code)


def _send(sock: socket.socket, message: FromPreparer, connection: socket.socket | None = None) -> None:
    """Send a message, and with it a connection, which is closed here."""
    try:
        if connection is None:
            sock.sendall(wire.frame(message))
        else:
            with connection:
                socket.send_fds(sock, [wire.frame(message)], [connection.fileno()])
    except OSError:
        os._exit(EXIT_ORPHANED)


def main(choose: Choose) -> NoReturn:
    """Run the preparer with the arguments of the command line."""
    run(lambda sock: serve(sock, choose))


if __name__ == "__main__":
    from worker.engines.choose import choose_reader

    main(choose_reader)
