"""An engine process that runs ExLlamaV2 on the CPU: the real host, with the stand-in installed first.

`COMMAND` starts it, for a broker's `command`, and `PREPARER` its preparer; the socket's fd and the parent's pid are
appended. `WORKER` is a program for Python: a whole worker whose processes are those.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import msgspec

from worker.engines.base import Engine, EngineSpec, OnLoad
from worker.processes import engine as host
from worker.processes import preparer

ROOT = Path(__file__).resolve().parents[3]
_CODE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.engines.exllamav2 import host; host.run()"
COMMAND = (sys.executable, "-c", _CODE)
PREPARER = (sys.executable, "-c", _CODE.replace("host.run()", "host.prepare()"))
WORKER = ("-c", _CODE.replace("host.run()", "host.serve()"))


def run() -> None:
    """Be the engine process. Does not return."""
    host.main(lambda spec: (_load, msgspec.structs.replace(spec, engine="exllamav2"), "it is the only one here"))


def prepare() -> None:
    """Be the preparer, which needs neither torch nor the library. Does not return."""
    from worker.engines.exllamav2.reader import read

    preparer.main(lambda spec: (read, msgspec.structs.replace(spec, engine="exllamav2"), "it is the only one here"))


def serve() -> None:
    """Be a worker. Does not return."""
    import worker.app
    from worker.brokers.local import LocalBroker
    from worker.cli import main

    worker.app.LocalBroker = partial(LocalBroker, command=COMMAND, preparer_command=PREPARER)  # type: ignore[misc, assignment]
    sys.exit(main())


def _load(spec: EngineSpec, on_load: OnLoad) -> Engine:
    from tests.engines.exllamav2 import cpu
    from worker.engines import exllamav2

    with cpu.gpu():
        return exllamav2.load(spec, on_load)
