"""The table of what is patched, and of what is used of Hypercorn 0.18 that it does not promise to keep.

Hypercorn's own classes are as they come: what must differ is in subclasses, which `server` puts together. They override
methods that have no documentation, so the dependency is pinned to one minor release. A test of this table checks that
each attribute exists before it is replaced, that each method that is overridden exists, and that every test does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h11._readers

from worker.transports.front.hypercorn.http import refuse_folds

VERSION = "0.18"
"""The minor release that is used."""

ISSUES = "https://github.com/pgjones/hypercorn/issues/"


@dataclass(frozen=True)
class Patch:
    """One attribute of h11 that is replaced.

    `issue` is the upstream issue, empty if none is known. `tests` fail without the patch. `until` says when it can go.
    """

    owner: Any
    name: str
    replacement: object
    why: str
    issue: str
    tests: tuple[str, ...]
    until: str


@dataclass(frozen=True)
class Reliance:
    """Methods of Hypercorn that a class of ours overrides, or a setting of the event loop. `issue` as for a patch."""

    what: str
    user: str
    why: str
    issue: str
    tests: tuple[str, ...]
    until: str


PATCHES = (
    Patch(
        owner=h11._readers,  # noqa: SLF001 - it has no public name
        name="_obsolete_line_fold",
        replacement=refuse_folds,
        why="Folded header lines, which RFC 9112 lets a server refuse, are joined before anybody else sees them.",
        issue="",
        tests=("tests/conformance/test_http.py::test_an_ambiguous_head_is_refused_and_the_connection_ends",),
        until="h11 can refuse them.",
    ),
)

RELIANCES = (
    Reliance(
        what="hypercorn.protocol.http_stream.HTTPStream: app_send handle",
        user="direct.DirectStream",
        why="Chunks of a stream skip Hypercorn's layers while the socket accepts them: half the CPU per chunk.",
        issue="",
        tests=("tests/transports/front/hypercorn/test_direct.py::test_hypercorn_has_nothing_to_do_for_a_piece",),
        until="Hypercorn writes a chunk for about what the system call costs.",
    ),
    Reliance(
        what="hypercorn.protocol.h11.H11Protocol: _check_protocol _create_stream _send_error_response",
        user="http.StrictProtocol",
        why="A plain connection may become HTTP/2, where one late frame closes every stream of the connection. Heads "
        "that a proxy may read in another way pass. WebSockets agree on compression.",
        issue=f"{ISSUES}307",
        tests=(
            "tests/conformance/test_rfc6455.py::test_prior_knowledge_of_http2_is_refused",
            "tests/conformance/test_http.py::test_an_ambiguous_head_is_refused_and_the_connection_ends",
        ),
        until="Hypercorn can switch HTTP/2 and WebSockets off for plain connections, and h11 refuses such heads.",
    ),
    Reliance(
        what="hypercorn.asyncio.task_group.TaskGroup: spawn_app",
        user="server.SmallTasks",
        why="The queue of each connection costs 3 KiB, empty or not. Reading waits for ever if it is full and its "
        "application has returned.",
        issue="",
        tests=(
            "tests/transports/front/hypercorn/test_inbox.py::test_an_empty_one_is_small",
            "tests/conformance/test_floods.py::test_nothing_of_a_flood_stays",
        ),
        until="asyncio.Queue or Hypercorn's use of it gets smaller, and reading does not wait for a dead application.",
    ),
    Reliance(
        what="hypercorn.asyncio.tcp_server.TCPServer: run protocol_send _read_data",
        user="server.HttpConnection",
        why="Hypercorn begins with a connection, not with a request, and says to nobody when it is idle. Since "
        "Python 3.12 a shutdown of its server waits for every connection, and it cannot cut one, or count.",
        issue=f"{ISSUES}308",
        tests=(
            "tests/transports/front/test_doorway.py::test_a_handshake_is_one_wherever_it_is_cut",
            "tests/e2e/test_lifecycle.py::test_clients_that_do_nothing_do_not_hold_it_up",
        ),
        until="Hypercorn serves a stream that is handed to it, and says when it waits for the next request.",
    ),
    Reliance(
        what="asyncio's exception handler",
        user="exceptions.ExceptionReporter",
        why="The event loop would log each connection that it cannot accept, thousands a second.",
        issue="",
        tests=("tests/e2e/test_operators.py::test_when_files_run_out_connections_wait_and_the_log_stays_short",),
        until="asyncio slows down by itself when files run out.",
    ),
)


def install() -> None:
    """Replace every attribute of the table. Calling it again changes nothing."""
    for patch in PATCHES:
        setattr(patch.owner, patch.name, patch.replacement)
