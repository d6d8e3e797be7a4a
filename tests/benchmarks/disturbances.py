"""What may disturb innocent clients: `python -m tests.benchmarks.disturbances NAME PORT` disturbs until it is killed.

A case is a function that is given the port of a worker and goes on for ever; its docstring is printed above its table
by `tests.benchmarks.undisturbed`. A new one is added to the CASES of its module in `tests/benchmarks/attacks/`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tests.benchmarks.attacks import calling, connecting, costly, framing, messages, working

BURN_S = 0.002


def none(port: int) -> None:
    """Do nothing: shows how much two quiet runs differ."""
    threading.Event().wait()


def burn(share: float) -> None:
    """Use a share of one core and disturb nobody otherwise: what a case costs by its CPU time alone."""
    begun_s, number = time.monotonic(), 0
    while True:
        owed_s = share * (time.monotonic() - begun_s) - time.thread_time()
        if owed_s <= 0:
            time.sleep(BURN_S)
            continue
        until_s = time.thread_time() + min(owed_s, BURN_S)
        while time.thread_time() < until_s:
            number = sum(range(200), number & 1)


ATTACKS: dict[str, Callable[[int], None]] = {
    case.__name__: case for module in (framing, connecting, calling, messages, working) for case in module.CASES
}
"""What a worker must bear from four connections, or a crowd of them, at full speed."""

CASES: dict[str, Callable[[int], None]] = {case.__name__: case for case in (none, *costly.CASES)} | ATTACKS


def main() -> None:
    """Do what the case needs first, print a line, then disturb."""
    name, value = sys.argv[1:]
    if name in CASES and (prepare := working.PREPARATIONS.get(CASES[name])):
        prepare(int(value))
    print("begun", flush=True)
    if name == burn.__name__:
        burn(float(value))
    else:
        CASES[name](int(value))


if __name__ == "__main__":
    main()
