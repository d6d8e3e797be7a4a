"""The table of everything that is patched in Hypercorn 0.18 and h11, and the private parts that the patches rely on.

Hypercorn has no switch for any of this. The dependency is pinned to one minor release, and a test of this table checks
that each attribute exists before it is replaced, holds the replacement afterwards, and that every named test exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h11._readers
import hypercorn.asyncio.run
import hypercorn.asyncio.task_group
import hypercorn.protocol
import hypercorn.protocol.h11
import hypercorn.protocol.ws_stream

from worker.transports.front.hypercorn.connections import RoomServer
from worker.transports.front.hypercorn.direct import DirectStream
from worker.transports.front.hypercorn.http import StrictProtocol, refuse_folds
from worker.transports.front.hypercorn.inbox import spawn_app
from worker.transports.front.hypercorn.strict import StrictStream

VERSION = "0.18"
"""The minor release that is patched."""

ISSUES = "https://github.com/pgjones/hypercorn/issues/"


def refuse_extensions(*_: object) -> None:
    """Agree on no WebSocket extension."""


@dataclass(frozen=True)
class Patch:
    """One attribute of Hypercorn or h11 that is replaced.

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
    """One private part of Hypercorn, or one setting of the event loop, that is used and not replaced."""

    what: str
    user: str
    why: str
    tests: tuple[str, ...]
    until: str


PATCHES = (
    Patch(
        owner=hypercorn.protocol.h11,
        name="WSStream",
        replacement=StrictStream,
        why="RFC 6455: bounded messages, close frames for violations, pings answered beside the read loop, status 426. "
        "The connection of a refused handshake ends, and a flood of tiny frames keeps the loop for 2 ms at most.",
        issue="",
        tests=(
            "tests/conformance/test_rfc6455.py::test_a_violation_closes_with_its_code",
            "tests/conformance/test_rfc6455.py::test_a_message_without_an_end_costs_no_memory",
            "tests/conformance/test_readers.py::test_pings_of_a_client_that_does_not_read_do_not_hold_up_its_cancel",
            "tests/conformance/test_refusals.py::test_every_refused_connection_ends_soon",
            "tests/conformance/test_floods.py::test_a_flood_of_tiny_frames_is_closed_and_holds_up_nobody",
        ),
        until="Hypercorn does all of it, or has a public place for a WebSocket stream.",
    ),
    Patch(
        owner=hypercorn.protocol.h11,
        name="HTTPStream",
        replacement=DirectStream,
        why="Chunks of a stream skip Hypercorn's layers while the socket accepts them: half the CPU per chunk.",
        issue="",
        tests=("tests/transports/front/hypercorn/test_direct.py::test_hypercorn_has_nothing_to_do_for_a_piece",),
        until="Hypercorn writes a chunk for about what the system call costs.",
    ),
    Patch(
        owner=hypercorn.asyncio.task_group.TaskGroup,
        name="spawn_app",
        replacement=spawn_app,
        why="The queue of each connection costs 3 KiB, empty or not. Reading waits for ever if it is full and its "
        "application has returned.",
        issue="",
        tests=(
            "tests/transports/front/hypercorn/test_inbox.py::test_an_empty_one_is_small",
            "tests/conformance/test_floods.py::test_nothing_of_a_flood_stays",
        ),
        until="asyncio.Queue or Hypercorn's use of it gets smaller, and reading does not wait for a dead application.",
    ),
    Patch(
        owner=hypercorn.protocol,
        name="H11Protocol",
        replacement=StrictProtocol,
        why="A plain connection may become HTTP/2, where one late frame closes every stream of the connection. Heads "
        "that a proxy may read in another way pass. Reading counts as a sign of life of a connection.",
        issue="",
        tests=(
            "tests/conformance/test_rfc6455.py::test_prior_knowledge_of_http2_is_refused",
            "tests/conformance/test_http.py::test_an_ambiguous_head_is_refused_and_the_connection_ends",
        ),
        until="Hypercorn can switch HTTP/2 off for plain connections, and h11 refuses such heads.",
    ),
    Patch(
        owner=h11._readers,  # noqa: SLF001 - it has no public name
        name="_obsolete_line_fold",
        replacement=refuse_folds,
        why="Folded header lines, which RFC 9112 lets a server refuse, are joined before anybody else sees them.",
        issue="",
        tests=("tests/conformance/test_http.py::test_an_ambiguous_head_is_refused_and_the_connection_ends",),
        until="h11 can refuse them.",
    ),
    Patch(
        owner=hypercorn.protocol.ws_stream,
        name="server_extensions_handshake",
        replacement=refuse_extensions,
        why="permessage-deflate doubles the CPU per token frame and costs 90 KiB per connection.",
        issue=f"{ISSUES}307",
        tests=(
            "tests/conformance/test_rfc6455.py::test_no_extension_is_agreed_upon_and_compressed_frames_are_a_violation",
            "tests/e2e/test_security.py::test_compression_is_not_agreed_upon",
        ),
        until="Hypercorn can switch compression off.",
    ),
    Patch(
        owner=hypercorn.asyncio.run,
        name="TCPServer",
        replacement=RoomServer,
        why="Since Python 3.12 a shutdown waits for every connection, and Hypercorn cannot cut one, or count.",
        issue=f"{ISSUES}308",
        tests=(
            "tests/e2e/test_lifecycle.py::test_clients_that_do_nothing_do_not_hold_it_up",
            "tests/e2e/test_room.py::test_connections_without_a_key_take_no_room_of_those_who_have_one",
        ),
        until="Hypercorn's graceful_timeout ends connections on Python 3.12 and later, and it counts connections.",
    ),
)

RELIANCES = (
    Reliance(
        what="stream.send.__self__.send.__self__.writer.transport",
        user="direct.transport_of",
        why="Only the transport can say whether bytes wait, and write without a task switch.",
        tests=("tests/transports/front/hypercorn/test_direct.py::test_hypercorn_has_nothing_to_do_for_a_piece",),
        until="as for HTTPStream",
    ),
    Reliance(
        what="hypercorn.asyncio.task_group._handle",
        user="inbox.spawn_app",
        why="It runs the application and has no public name.",
        tests=("tests/transports/front/hypercorn/test_direct.py::test_an_answer_is_one_that_http_knows",),
        until="as for spawn_app",
    ),
    Reliance(
        what="asyncio's exception handler",
        user="exceptions.ExceptionReporter",
        why="The loop of Hypercorn's server would log each connection that it cannot accept, thousands a second.",
        tests=("tests/e2e/test_operators.py::test_when_files_run_out_connections_wait_and_the_log_stays_short",),
        until="asyncio slows down by itself when files run out.",
    ),
)


def install() -> None:
    """Replace every attribute of the table. Calling it again changes nothing."""
    for patch in PATCHES:
        setattr(patch.owner, patch.name, patch.replacement)
