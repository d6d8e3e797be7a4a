"""Why a work was refused that cost its hand too much, and which prompts and forms are refused unread. Pure."""

from __future__ import annotations

import hashlib
import signal
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from worker.errors import FieldError, InvalidParams, Problem
from worker.processes.messages import HandLimits
from worker.requests import Prompt, ResponseFormat

REMEMBERED_S = 60.0
"""How long the same prompt or form is refused unread."""

REMEMBERED_MAX = 1024
"""Digests that are kept; the oldest go first."""

HARMLESS_MAX = 4096
"""Forms that are known to be harmless; those unused for longest go first."""

OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""Signals that somebody else sent: the work is not to blame, the first time."""

_encoder = msgspec.msgpack.Encoder()


class Refusals:
    """The digests of prompts and forms that were refused for what they cost, and of forms that are harmless."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._refused: OrderedDict[bytes, tuple[float, Problem]] = OrderedDict()
        self._harmless: OrderedDict[bytes, None] = OrderedDict()

    def remember(self, digest: bytes, error: Problem) -> None:
        """Refuse what has this digest for a while, for the same reason."""
        self._refused[digest] = (self._clock_s() + REMEMBERED_S, error)
        self._refused.move_to_end(digest)
        if len(self._refused) > REMEMBERED_MAX:
            self._refused.popitem(last=False)
        self._harmless.pop(digest, None)

    def find(self, prompt: Prompt, form: ResponseFormat) -> Problem | None:
        """Return why this prompt or form is refused, None if it is not."""
        # Nothing is computed for anybody while nothing is refused.
        self._expire()
        if not self._refused:
            return None
        digests = [prompt_digest(prompt)] if form.type == "text" else [prompt_digest(prompt), form_digest(form)]
        return next((self._refused[digest][1] for digest in digests if digest in self._refused), None)

    def trust(self, digest: bytes) -> None:
        """Remember that a form is harmless."""
        self._harmless[digest] = None
        self._harmless.move_to_end(digest)
        if len(self._harmless) > HARMLESS_MAX:
            self._harmless.popitem(last=False)

    def harmless(self, digest: bytes) -> bool:
        """Return whether a form was found harmless before."""
        if digest not in self._harmless:
            return False
        self._harmless.move_to_end(digest)
        return True

    def _expire(self) -> None:
        now_s = self._clock_s()
        while self._refused:
            digest, (until_s, _) = next(iter(self._refused.items()))
            if until_s > now_s:
                break
            del self._refused[digest]


def prompt_digest(prompt: Prompt) -> bytes:
    """Return a digest of a prompt."""
    return hashlib.blake2b(_encoder.encode(prompt), digest_size=16, person=b"prompt").digest()


def form_digest(form: ResponseFormat) -> bytes:
    """Return a digest of a form."""
    return hashlib.blake2b(_encoder.encode(form), digest_size=16, person=b"form").digest()


def blame(pointer: str, number: int, exit_code: int, limits: HandLimits, *, memory_short: bool) -> InvalidParams:
    """Return the error of a work that ended its hand by a signal, or with an exit code, while the hand read this field.

    `memory_short`: the kernel has killed processes for want of memory since the hand began.
    """
    subject = "The response format" if pointer == "/response_format" else "The prompt"
    reason = _reason(number, exit_code, limits, memory_short=memory_short)
    return InvalidParams(f"{subject} {reason}.", errors=(FieldError(pointer, reason),))


def _reason(number: int, exit_code: int, limits: HandLimits, *, memory_short: bool) -> str:
    match number:
        case signal.SIGALRM:
            return f"took longer to read than prepare_timeout_s ({limits.prepare_timeout_s:g} s)"
        case signal.SIGPROF:
            return (
                f"takes more CPU time than form_compile_ms_max ({limits.form_compile_ms_max} ms) to compile "
                f"and form_mask_ms_max ({limits.form_mask_ms_max} ms) to follow"
            )
        case signal.SIGABRT:
            most = limits.prepare_memory_bytes_max
            return f"needs more to be read than prepare_memory_bytes_max ({most} bytes), or ended its reader otherwise"
        case signal.SIGKILL if memory_short:
            return "needs more memory to be read than this machine has"
        case signal.SIGKILL | signal.SIGTERM:
            return f"ended the process that read it twice (signal {number})"
        case 0:
            return f"ended the process that read it (exit code {exit_code})"
        case _:
            return f"ended the process that read it (signal {number})"
