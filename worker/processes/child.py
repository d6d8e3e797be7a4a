"""A child process of the gateway: starts it with its end of a socket pair, kills it, and explains how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Sequence
from pathlib import Path

ENGINE_COMMAND = (sys.executable, "-P", "-m", "worker.processes.engine")
"""Starts an engine process. -P: a folder named worker in the current directory must not be taken for this package."""

PREPARER_COMMAND = (sys.executable, "-P", "-m", "worker.processes.preparer")
"""Starts a preparer, likewise."""

FORKS = hasattr(os, "fork")
"""Whether a preparer forks hands here."""

OUTPUT_LINES_KEPT = 20
"""Lines of its output that are kept to explain its end."""

REAP_TIMEOUT_S = 1.0
"""How long a killed process is waited for. It is gone at once, unless it is inside a driver."""

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables that numerical libraries read once, when they are loaded."""


class Child:
    """A child process. It leads its own session and group, so that it is killed with all that it starts.

    `name` is what sentences call it. `socket` is this side of its socket pair; `process.stdout` has its output and
    errors in one. Raises OSError when the system starts no process.
    """

    def __init__(self, command: Sequence[str], threads: int, name: str = "engine process") -> None:
        self.name = name
        with contextlib.ExitStack() as on_error:
            self.socket, theirs = socket.socketpair()
            on_error.enter_context(self.socket)
            with theirs:
                self.process = _start(command, theirs, environment(threads))
            on_error.pop_all()
        self.lines: deque[str] = deque(maxlen=OUTPUT_LINES_KEPT)
        self._ended = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. If not, the processes that it started are killed now."""
        if not self._ended and self.process.poll() is not None:
            self._ended = True
            self._kill_group()
        return not self._ended

    def kill(self) -> None:
        """End it now, and all that it started. It may take the kernel a moment."""
        if self.alive:
            self._kill_group()

    def close(self) -> None:
        """Kill it and close this side's files. Waits for the kernel alone, REAP_TIMEOUT_S at most."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(REAP_TIMEOUT_S)
        self.socket.close()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def ending(self) -> str:
        """Return how it ended, as the beginning of a sentence."""
        if self.alive:
            return f"the {self.name} closed its connection"
        code = self.process.returncode
        if code < 0:
            return f"the {self.name} was killed by signal {-code}"
        last = next((line for line in reversed(self.lines) if line.strip()), "")
        return f"the {self.name} exited with code {code}" + (f" ({last.strip()})" if last else "")


def _start(command: Sequence[str], theirs: socket.socket, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  (our own interpreter and module)
        [*command, str(theirs.fileno()), str(os.getpid())],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
        start_new_session=True,
    )


def environment(threads: int) -> dict[str, str]:
    """Return the variables of a child: `threads` for numerical libraries, 0 for the user's choice or one.

    One thread is fastest for small models, and a machine that serves has other work for its cores. Waiting threads must
    sleep, not spin: with spinning ones a busy machine was measured five times slower.
    """
    # Settings come in a message; some are secrets, and every process that the child starts would inherit them.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JOBWIRE_")}
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in THREAD_VARIABLES:
        variables[name] = str(threads) if threads else variables.get(name, "1")
    # The child runs this very code, be it installed or a checkout.
    root = Path(__file__).resolve().parents[2]
    if str(root) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), variables.get("PYTHONPATH"))))
    return variables
