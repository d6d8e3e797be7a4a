"""`jobwire doctor --url`: checks a running worker from where its clients are, through the proxy before it."""

from __future__ import annotations

import http.client
import zlib
from collections.abc import Iterator

from worker.cli.findings import Finding
from worker.cli.outside.reach import check_address, check_health, check_key, check_tls
from worker.cli.outside.socket import check_idle, check_socket
from worker.cli.outside.streams import check_prefix, check_stream
from worker.cli.outside.way import Enough, Way

NOT_UNDERSTOOD = (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error)
"""What reading an answer may raise: whatever listens there may answer anything."""

CHECKS = (check_address, check_tls, check_health, check_key, check_socket, check_prefix, check_stream)


def check(way: Way, idle_s: float) -> Iterator[Finding]:
    """Do all checks, the one of silent connections only with an `idle_s`, until nothing more can be found out."""
    try:
        for step in CHECKS:
            yield from step(way)
        if idle_s:
            yield from check_idle(way, idle_s)
    except Enough as end:
        yield end.finding
    except (OSError, http.client.HTTPException, *NOT_UNDERSTOOD) as error:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        yield Finding("problem", f"An answer broke off or cannot be understood ({what})", "See the log of the proxy.")
