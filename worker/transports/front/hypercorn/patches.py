"""The table of everything that is patched in Hypercorn 0.18, and the private parts of it that the patches rely on.

Hypercorn has no switch for any of this. The dependency is pinned to one minor release, and a test of this table checks
that each attribute exists before it is replaced, holds the replacement afterwards, and that every named test exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypercorn.asyncio.run
import hypercorn.asyncio.task_group
import hypercorn.protocol.h11
import hypercorn.protocol.ws_stream

from worker.transports.front.hypercorn.direct import DirectStream
from worker.transports.front.hypercorn.inbox import spawn_app
from worker.transports.front.hypercorn.shutdown import RememberedServer
from worker.transports.front.hypercorn.strict import StrictStream

VERSION = "0.18"
"""The minor release that is patched."""

ISSUES = "https://github.com/pgjones/hypercorn/issues/"


async def stay_with_http1(_protocol: object, _request: object) -> None:
    """Ignore an offer to speak HTTP/2."""


def refuse_extensions(*_: object) -> None:
    """Agree on no WebSocket extension."""


@dataclass(frozen=True)
class Patch:
    """One attribute of Hypercorn that is replaced.

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
        why="RFC 6455: bounded messages, close frames for violations, pings answered beside the read loop, status 426.",
        issue="",
        tests=(
            "tests/conformance/test_rfc6455.py::test_a_violation_closes_with_its_code",
            "tests/conformance/test_rfc6455.py::test_a_message_without_an_end_costs_no_memory",
            "tests/conformance/test_readers.py::test_pings_of_a_client_that_does_not_read_do_not_hold_up_its_cancel",
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
        why="The queue of each connection costs 3 KiB, empty or not.",
        issue="",
        tests=("tests/transports/front/hypercorn/test_inbox.py::test_an_empty_one_is_small",),
        until="asyncio.Queue or Hypercorn's use of it gets smaller.",
    ),
    Patch(
        owner=hypercorn.protocol.h11.H11Protocol,
        name="_check_protocol",
        replacement=stay_with_http1,
        why="A plain connection may become HTTP/2, where one late frame closes every stream of the connection.",
        issue="",
        tests=("tests/conformance/test_rfc6455.py::test_prior_knowledge_of_http2_is_refused",),
        until="Hypercorn can switch HTTP/2 off for plain connections.",
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
        replacement=RememberedServer,
        why="Since Python 3.12 a shutdown waits for every connection, and Hypercorn has no way to cut one.",
        issue=f"{ISSUES}308",
        tests=("tests/e2e/test_lifecycle.py::test_clients_that_do_nothing_do_not_hold_it_up",),
        until="Hypercorn's graceful_timeout ends connections on Python 3.12 and later.",
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
