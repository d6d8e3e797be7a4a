"""`jobwire engine build`: compiles the extension of ExLlamaV2 for this machine once, so that serving never waits."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence

from worker.config import Parser
from worker.engines.gpu import build_extension


def engine(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Build the extension; return 0. Raises ConfigError for wrong arguments, ModelError when it cannot be built."""
    parser = Parser(
        prog="jobwire engine",
        usage="%(prog)s build",
        description="Compile the CUDA extension of the ExLlamaV2 engine for the GPUs of this machine. Takes minutes.",
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=["build"], help="compile it, unless it was built before")
    parser.parse_exactly(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    print("Building the extension of ExLlamaV2 ...", flush=True)
    seconds = build_extension(environ, lambda done, total: print(f"{done:3} of {total} files compiled", flush=True))
    done = f"Built in {seconds:.0f} s" if seconds else "It was built before"
    print(f"{done}. `jobwire serve --engine exllamav2 --model FOLDER` can use it.")
    return 0


def _stop(number: int, _frame: object) -> None:
    """End in order: compilers run in a session of their own, where no signal reaches them."""
    raise SystemExit(128 + number)
