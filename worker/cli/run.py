"""`jobwire run`: one job, streamed to the terminal, with the scheduler and the engine in this very process."""

from __future__ import annotations

import argparse
import io
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, TypeAlias

import msgspec

from worker import printable
from worker.cli.moving import loading_line
from worker.config import Parser, add_flags, given_flags, resolve
from worker.engines.base import Broke, Delta, Engine, Generation, LoadProgress, Prefilled
from worker.engines.choose import choose
from worker.errors import ConfigError, EngineFailed, FieldError, InvalidParams, Problem
from worker.operations.base import JobRequest, Limits
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.processes.child import environment
from worker.processes.messages import Open
from worker.scheduler.loop import Loop
from worker.scheduler.works import PreparedWork, Refused, Started, WorkEvent

_FIELDS: tuple[tuple[str, type, str], ...] = (
    ("max_tokens", int, "Output tokens, at most."),
    ("temperature", float, "0 always takes the likeliest token, 1 is the model's own distribution. 0 to 2."),
    ("top_p", float, "Draw from the likeliest tokens that together have this probability. 0 to 1."),
    ("top_k", int, "Draw from this number of the likeliest tokens. 0 is all."),
    ("min_p", float, "Leave out tokens below this share of the likeliest one's probability. 0 to 1."),
    ("repetition_penalty", float, "Above 1, tokens of the text so far get less likely. 1 is off."),
    ("seed", int, "Makes the draw repeatable. Without one, each run draws anew."),
)
"""Fields of the operation "infer" that are flags here: name, type, description."""

Report: TypeAlias = Callable[[str], None]
"""Shows a line to the user, or drops it without --verbose."""


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Stream the answer to one prompt to stdout; return the exit code.

    Raises ConfigError for wrong arguments, InvalidParams for a prompt that the model cannot process, ModelError and
    EngineFailed for failures of model and engine, KeyboardInterrupt after a Ctrl-C, which stops it between two steps.
    """
    asked = _parser().parse_exactly(argv)
    settings = resolve(given_flags(asked), environ)
    request = _request(asked, Limits.of(settings))
    report: Report = _print_error if asked.verbose else lambda _: None
    # Numerical libraries read these when they are loaded: as in an engine process, so that results are equal.
    os.environ.update(environment(settings.threads))
    opening = Open.of(settings)
    engine = _load(opening, report, verbose=asked.verbose)
    try:
        if request.prompt.messages:
            engine.reader.try_template()
        loop = Loop(engine, opening.schedule)
        loop.submit(PreparedWork(prepared=engine.reader.prepare(_generation(request), engine.info.bounds)))
        _stream(loop, _Screen(report))
    finally:
        engine.close()
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="jobwire run",
        usage='%(prog)s "PROMPT" [--model PATH] [--max-tokens N] [--temperature T] [settings]',
        description="Stream one answer to the terminal, without a server. Ctrl-C stops it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="The question. Without one, or with -, it is read from stdin."
    )
    parser.add_argument("--system", metavar="TEXT", help="Instruction that precedes the prompt.")
    parser.add_argument("--raw", action="store_true", help="Continue the prompt as it stands, without a chat template.")
    parser.add_argument("--verbose", action="store_true", help="Report every step on stderr.")
    sampling = parser.add_argument_group("How to answer")
    for name, kind, text in _FIELDS:
        sampling.add_argument("--" + name.replace("_", "-"), type=kind, metavar="N", help=text)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="End before this text. May be repeated.")
    add_flags(parser, ["What to run"])
    return parser


def _request(asked: argparse.Namespace, limits: Limits) -> JobRequest:
    try:
        return Infer().parse(_body(asked), limits, WrongFields())
    except InvalidParams as error:
        raise ConfigError("; ".join(_in_flags(wrong) for wrong in error.errors) + ".") from None


def _in_flags(wrong: FieldError) -> str:
    """Return a wrong field as its flag and the values allowed."""
    name = wrong.pointer.split("/")[1]
    return f"{'prompt' if name in Infer.one_of else '--' + name.replace('_', '-')}: {wrong.detail}"


def _body(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as the body of a request to a worker, so that both mean the same."""
    prompt: str | None = asked.prompt
    if prompt in (None, "-"):
        prompt = "" if prompt is None and sys.stdin.isatty() else sys.stdin.read()
    if not prompt:
        raise ConfigError('There is no prompt. Try: jobwire run "Tell me a story about a fox"')
    body = {name: getattr(asked, name) for name, _, _ in _FIELDS}
    body |= {"stop": asked.stop, "raw": asked.raw}
    if asked.system is None:
        return body | {"prompt": prompt}
    if asked.raw:
        raise ConfigError("--system needs a chat template, and --raw leaves it out: use only one of them.")
    messages = [("system", asked.system), ("user", prompt)]
    return body | {"messages": [{"role": role, "content": content} for role, content in messages]}


def _load(opening: Open, report: Report, *, verbose: bool) -> Engine:
    load, spec, why = choose(msgspec.structs.replace(opening.spec, slots=1))
    report(f"Engine: {spec.engine}, because {why}")
    with loading_line() if verbose else nullcontext(_ignore) as on_load:
        engine = load(spec, on_load)
    report(f"Ready: {engine.info.model} on {engine.info.engine} ({engine.info.device})")
    return engine


def _ignore(_progress: LoadProgress) -> None:
    """Show nothing: without --verbose only the answer is written."""


def _generation(request: JobRequest) -> Generation:
    seed = secrets.randbits(64) if request.seed is None else request.seed
    return request.generation("run", seed)


class _Screen:
    """Writes text to stdout as it comes, and passes all other events to `report`.

    A terminal gets it without control characters, a file or a program exactly as the model wrote it.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._tokens = 0
        self._first_s = 0.0
        self._shown: Callable[[str], str] = printable.in_text if sys.stdout.isatty() else str
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that cannot show a character shows a question mark rather than a traceback.
            sys.stdout.reconfigure(errors="replace")

    def show(self, event: WorkEvent) -> None:
        """Show one event, or raise it if it is an error."""
        match event:
            case Delta():
                self._text(event)
            case Started():
                self._report(f"Prompt: {event.prompt_tokens} tokens")
            case Prefilled():
                self._report(f"Prefill: {event.done} of {event.total} tokens")
            case Refused(error=problem) | Broke(error=problem):
                raise _error(problem)

    def _text(self, delta: Delta) -> None:
        self._first_s = self._first_s or time.monotonic()
        self._tokens += len(delta.ids)
        print(self._shown(delta.text), end="", flush=True)
        if delta.finish is not None:
            seconds = time.monotonic() - self._first_s
            self._report(f"\nEnd: {delta.finish}, {self._tokens} tokens in {seconds:.2f} s after the first")


def _stream(loop: Loop, screen: _Screen) -> None:
    with _ctrl_c_between_steps() as interrupted:
        while (batch := loop.step()) is not None:
            for event in batch.events:
                screen.show(event)
            if interrupted():
                print()
                raise KeyboardInterrupt
    print()


@contextmanager
def _ctrl_c_between_steps() -> Iterator[Callable[[], bool]]:
    """Remember a Ctrl-C within the block, so that it interrupts no step, rather than raise it. A second is raised."""
    pressed = False

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _error(problem: Problem) -> InvalidParams | EngineFailed:
    wrong_request = problem.code == InvalidParams.code
    return InvalidParams(problem.detail) if wrong_request else EngineFailed(problem.detail)


def _print_error(sentence: str) -> None:
    print(printable.in_lines(sentence), file=sys.stderr, flush=True)
