"""A hand: the process that reads what strangers wrote, one work after the other, and that may die of one.

Its limits are those of the kernel, so they end native code as well, and nobody has to watch: a timer for the whole work
(`prepare_timeout_s`, SIGALRM), one of CPU time for the trial of a form (SIGPROF), and a limit of memory relative to the
size after loading (`prepare_memory_bytes_max`), where Python raises MemoryError and native code aborts (SIGABRT). The
gateway reads the cause from the signal. A hand that has grown leaves by itself: the next one is a fork away.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator

from worker.engines.base import Bounds, Generation, Prepared, Reader
from worker.errors import EngineFailed, FieldError, InvalidParams, JobwireError
from worker.processes import wire
from worker.processes.memory import data_bytes, private_bytes
from worker.processes.messages import FormPassed, HandLimits, Made, Prepare, Refuse, SetBounds, Submit
from worker.processes.parent import EXIT_ORPHANED, end_with
from worker.requests import ResponseFormat
from worker.scheduler.works import PreparedWork, Work

EXIT_GROWN = 0
"""Exit code of a hand that leaves because it has grown."""

GROWTH_BYTES_MAX = 64 << 20
"""A hand that is larger than at its start by more than this leaves: it would keep what it once needed."""

TRIAL_SLACK = 1.5
"""The timer of a form's trial allows this many times the limits: a form just above them is refused in words first."""

COSTLY_MS = 20.0
"""A refusal that took longer is remembered by the gateway, which refuses the same again without the work."""

NICENESS = 5
"""Streams that run go before works that are read; on an idle machine it makes no difference."""

RECEIVE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def confine(memory_bytes_max: int) -> None:
    """Set the limits of this process, which has just been forked, relative to its size now."""
    # A handler of Python runs between two of its instructions: native code would never get there.
    for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV):
        signal.signal(number, signal.SIG_DFL)
    # Deaths are expected here; their traces would fill the log with what strangers cause.
    faulthandler.disable()
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        most = data_bytes() + memory_bytes_max
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def serve(sock: socket.socket, reader: Reader, limits: HandLimits, parent_pid: int) -> int:
    """Read works for the gateway at the other end of `sock` until it closes, or until grown; return the exit code."""
    end_with(parent_pid)
    confine(limits.prepare_memory_bytes_max)
    hand = Hand(sock, reader, limits)
    start_bytes = private_bytes()
    messages = wire.to_hand()
    while data := sock.recv(RECEIVE_BYTES):
        # Decoding counts: it is a stranger's text already.
        with _timer(signal.ITIMER_REAL, limits.prepare_timeout_s):
            answers = [hand.answer(message) for message in messages.feed(data)]
        for answer in answers:
            if answer is not None:
                sock.sendall(answer)
        if private_bytes() - start_bytes > GROWTH_BYTES_MAX:
            return EXIT_GROWN
    return EXIT_ORPHANED


@contextlib.contextmanager
def _timer(which: int, seconds: float) -> Iterator[None]:
    """End this process by the timer's signal if the block lasts longer."""
    signal.setitimer(which, seconds)
    try:
        yield
    finally:
        signal.setitimer(which, 0)


class Hand:
    """Answers the gateway's messages, without any limit of its own."""

    def __init__(self, sock: socket.socket, reader: Reader, limits: HandLimits) -> None:
        self._sock = sock
        self._reader = reader
        self._limits = limits
        self._bounds: Bounds | None = None

    def answer(self, message: SetBounds | Prepare) -> bytearray | None:
        """Return the frame of the answer to a message, None if it has none."""
        if isinstance(message, SetBounds):
            self._bounds = message.bounds
            return None
        return wire.frame(self._prepare(message))

    def _prepare(self, message: Prepare) -> Made | Refuse:
        work, begun_s = message.work, time.perf_counter()
        form = work.generation.sampling.response_format
        tried = not message.try_form or form.type == "text"
        try:
            if not tried:
                self._try_form(work.generation.lease, form)
                tried = True
            assert self._bounds is not None, "SetBounds comes before the first Prepare"
            return _made(work, self._reader.prepare(work.generation, self._bounds))
        except JobwireError as error:
            refused, costly = error, (time.perf_counter() - begun_s) * 1000 > COSTLY_MS
        except MemoryError:
            refused, costly = self._too_large(work.generation, tried), True
        except BaseException as error:
            # Panics of native libraries are no Exceptions. Their texts are for the operator.
            logger.exception("a work could not be read")
            refused, costly = _broken(tried, error), True
        return Refuse(work.generation.lease, refused.problem(), ("prompt" if tried else "form") if costly else "")

    def _try_form(self, lease: str, form: ResponseFormat) -> None:
        compile_ms, mask_ms = self._limits.form_compile_ms_max, self._limits.form_mask_ms_max
        begun_s = time.perf_counter()
        with _timer(signal.ITIMER_PROF, (compile_ms + mask_ms) / 1000 * TRIAL_SLACK):
            self._reader.try_form(form, compile_ms, mask_ms)
        self._sock.sendall(wire.frame(FormPassed(lease, (time.perf_counter() - begun_s) * 1000)))

    def _too_large(self, generation: Generation, tried: bool) -> InvalidParams:
        most = f"needs more than prepare_memory_bytes_max ({self._limits.prepare_memory_bytes_max} bytes) to be read"
        pointer = "/response_format" if not tried else "/messages" if generation.prompt.messages else "/prompt"
        subject = "The prompt" if tried else "The response format"
        return InvalidParams(f"{subject} {most}.", errors=(FieldError(pointer, most),))


def _broken(tried: bool, error: BaseException) -> JobwireError:
    if tried:
        return EngineFailed(f"The prompt could not be read ({type(error).__name__}).")
    detail = "cannot be compiled"
    return InvalidParams(f"The response format {detail}.", errors=(FieldError("/response_format", detail),))


def _made(work: Work, prepared: Prepared) -> Made:
    ready = PreparedWork(
        prepared=prepared, account=work.account, weight=work.weight, priority=work.priority, solo=work.solo
    )
    return Made(
        lease=work.generation.lease,
        prompt_tokens=len(prepared.prompt_ids),
        ids=b"" if work.generation.prompt_ids else prepared.packed_prompt,
        submit=bytes(wire.frame(Submit(ready))),
    )
