"""`jobwire schema NAME`: prints a document of the protocol, as the worker serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker import __version__
from worker.config import Parser
from worker.operations.infer import Infer
from worker.operations.status import Status
from worker.operations.worker_check import WorkerCheck
from worker.protocol.describe.library import NAMES, Library

OPERATIONS = (Infer, Status, WorkerCheck)


def schema(argv: Sequence[str], environ: Mapping[str, str]) -> int:  # noqa: ARG001  (every command's signature)
    """Print a document; return 0. Raises ConfigError for wrong arguments."""
    parser = Parser(
        prog="jobwire schema",
        description="Print a description of the protocol, generated from its code.",
        allow_abbrev=False,
    )
    parser.add_argument("document", choices=[*NAMES], help="which description")
    asked = parser.parse_exactly(argv)
    print(Library(OPERATIONS, __version__).text(asked.document), end="")
    return 0
