"""The commands, each in a module of its own, with their dispatch and exit codes.

Exit codes: 0 success; 1 failure (of the model, of the job, or for `doctor` of the machine); 2 a wrong setting or
argument; 130 interrupted by Ctrl-C; 141 the reader of the output is gone (as in `jobwire run ... | head`).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from io import TextIOWrapper
from typing import TypeAlias

from worker import __version__, printable
from worker.errors import ConfigError, InvalidParams, JobwireError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141

Command: TypeAlias = Callable[[Sequence[str], Mapping[str, str]], int]

_HELP = """\
usage: jobwire COMMAND ...

The realtime LLM worker: jobs come in and stream out over WebSocket and SSE.

commands:
  serve              serve a model on this machine; without settings, the small bundled one on 127.0.0.1:8080
  run "PROMPT"       stream one answer to the terminal, without a server
  bench              measure what delivery costs, against the bare engine
  doctor             check this machine, or with --url a worker behind its proxy, and show what to change
  engine build       compile the extension for NVIDIA GPUs, once
  schema NAME        print a description of the protocol: OpenAPI, AsyncAPI, JSON Schema, TypeScript types, tables

`jobwire COMMAND --help` shows the arguments of a command. Arguments without a command are settings of `serve`.

exit codes: 0 success, 1 failure, 2 a wrong setting or argument, 130 interrupted, 141 nobody reads the output
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, `sys.argv` without `argv`; return the exit code."""
    _prepare_standard_files()
    try:
        with ExitStack() as at_end:
            # Here, not when the interpreter ends: it may fail.
            at_end.callback(sys.stdout.flush)
            return _dispatch(sys.argv[1:] if argv is None else argv, os.environ)
    except (ConfigError, InvalidParams) as error:
        return _report(error, EXIT_USAGE)
    except JobwireError as error:
        return _report(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            raise
        # The interpreter flushes once more when it ends: send that nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return EXIT_PIPE
        return _report(JobwireError(f"The output cannot be written: {error.strerror}."), EXIT_FAILED)


def _prepare_standard_files() -> None:
    """Make sure that all three exist, and that no text is refused because the terminal lacks a character."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the number of the closed one. Otherwise a socket would get it, and all text that is printed there.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    if not argv or argv[0] in ("-h", "--help") or argv == ["help"]:
        print(_HELP, end="")
        return 0 if argv else EXIT_USAGE
    if argv[0] == "help":
        argv = [argv[1], "--help"]
    if argv[0] == "--version":
        print(f"jobwire {__version__}")
        return 0
    # Launchers of older workers name no command.
    name, rest = ("serve", argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    command = _COMMANDS.get(name)
    if command is None:
        close = get_close_matches(name, _COMMANDS, n=1)
        hint = f"Did you mean {close[0]}?" if close else "`jobwire --help` lists all."
        raise ConfigError(f"{name} is not a command. {hint}")
    return command(rest, environ)


def _report(error: JobwireError, code: int) -> int:
    print(f"jobwire: {printable.in_lines(error.detail)}", file=sys.stderr)
    return code


# Each command imports what it needs when it is called: `run` and `--help` start without the web server's half second.


def _serve(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from worker.cli.serve import serve

    return serve(argv, environ)


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from worker.cli.run import run

    return run(argv, environ)


def _doctor(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from worker.cli.doctor import doctor

    return doctor(argv, environ)


def _bench(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from worker.cli.bench import bench

    return bench(argv, environ)


def _engine(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from worker.cli.engine import engine

    return engine(argv, environ)


def _schema(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    from worker.cli.schema import schema

    return schema(argv, environ)


_COMMANDS: dict[str, Command] = {
    "serve": _serve,
    "run": _run,
    "doctor": _doctor,
    "bench": _bench,
    "engine": _engine,
    "schema": _schema,
}
