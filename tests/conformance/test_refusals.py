"""Whoever is refused, or says only half of what it has to say, is rid of its connection soon, silent as it may be.

Each case is a connection on which a client sends something and then waits, reading what comes: the worker must end it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.rawsocket import encode, handshake, text
from tests.e2e.client import Socket, counting, expected_count
from tests.support.server import Server, serving

KEY = "sixteen-characters-or-more"
SHOWN = f"Authorization: Bearer {KEY}\r\n"
ENDS_WITHIN_S = 6.0
GIVE_UP_S = 20.0
HOST = "Host: localhost\r\n"


@dataclass(frozen=True)
class Case:
    """What is sent, what is sent again every half second, and the status of the answer; None where there is none."""

    sent: bytes
    status: int | None
    drip: bytes = b""


def opening(status: int | None, behind: bytes = b"", first: str = "GET /v1/ws HTTP/1.1", **changes: str | None) -> Case:
    """A handshake with changes: header names with underscores, None leaves one out."""
    headers = {name.replace("_", "-"): value for name, value in changes.items()}
    return Case(handshake(headers, first) + behind, status)


def ask(status: int | None, line: str, more: str = "", body: bytes = b"", drip: bytes = b"") -> Case:
    """A request."""
    return Case(f"{line} HTTP/1.1\r\n{HOST}{more}\r\n".encode("latin-1") + body, status, drip)


CASES = {
    # Handshakes.
    "no key": opening(400, Sec_WebSocket_Key=None),
    "no host": opening(400, Host=None),
    "version 12": opening(426, Sec_WebSocket_Version="12"),
    "no version": opening(426, Sec_WebSocket_Version=None),
    "HTTP/1.0": opening(400, first="GET /v1/ws HTTP/1.0"),
    "with a body": opening(400, b"hello", Content_Length="5"),
    "with a body that does not come": opening(400, Content_Length="5"),
    "with chunks": opening(400, Transfer_Encoding="chunked"),
    "a byte behind it": opening(400, b"x"),
    "a frame behind it": opening(400, text("{}")),
    "another path": opening(404, first="GET /nope HTTP/1.1"),
    "another path, a byte behind it": opening(404, b"x", first="GET /nope HTTP/1.1"),
    "another path, no key": opening(404, first="GET /nope HTTP/1.1", Sec_WebSocket_Key=None),
    "another path, version 12": opening(404, first="GET /nope HTTP/1.1", Sec_WebSocket_Version="12"),
    "subprotocol not ASCII": Case(handshake()[:-2] + b"Sec-WebSocket-Protocol: bearer.\xff\r\n\r\n", 400),
    "control character": opening(400, X_Name="a\x01b"),
    "header too large": opening(431, X_Name="a" * 70_000),
    "half a handshake": Case(handshake()[:60], None),
    "half a handshake, dripping": Case(handshake()[:60], None, b"a"),
    # Handshakes that are accepted, so that a page sees why they are closed.
    "another host": opening(101, Host="evil.example"),
    "another origin": opening(101, Origin="https://evil.example"),
    "a wrong key": opening(101, Authorization="Bearer no"),
    "a wrong key, pings": Case(handshake({"Authorization": "Bearer no"}), 101, encode(9)),
    "another subprotocol": opening(101, Authorization=f"Bearer {KEY}", Sec_WebSocket_Protocol="jobwire.v9"),
    # Requests.
    "nothing": Case(b"", None),
    "half a request line": Case(b"GET /he", None, b"a"),
    "half a head": Case(b"GET /health HTTP/1.1\r\nHost: localhost\r\n", None, b"X: y\r\n"),
    "no HTTP": Case(b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "request without host": Case(b"GET /health HTTP/1.1\r\n\r\n", 400),
    "request for another host": Case(b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    "request without a key": ask(401, "GET /v1/jobs"),
    "request with a wrong key": ask(401, "GET /v1/jobs", "Authorization: Bearer no\r\n"),
    "unknown path": ask(404, "GET /nope"),
    "wrong method": ask(405, "DELETE /v1/jobs", SHOWN),
    "header larger than 64 KiB": ask(431, "GET /health", f"X: {'a' * 70_000}\r\n"),
    "length and encoding": ask(
        400, "POST /v1/jobs", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"
    ),
    "folded header": ask(400, "GET /health", "X: a\r\n b\r\n"),
    "no length": ask(400, "POST /v1/jobs", "Content-Length: many\r\n"),
    "unknown encoding": ask(501, "POST /v1/jobs", "Transfer-Encoding: gzip\r\n"),
    "body that is no chunk": ask(400, "POST /v1/jobs", "Transfer-Encoding: chunked\r\n", b"zz\r\n"),
    "slow body without a key": ask(
        401, "POST /v1/jobs", "Content-Type: application/json\r\nContent-Length: 9999\r\n", drip=b"x"
    ),
    "slow chunks": ask(200, "GET /health", "Transfer-Encoding: chunked\r\n", drip=b"1\r\nx\r\n"),
    "silence after an answer": ask(200, "GET /health"),
    "half a request after an answer": ask(200, "GET /health", body=b"GET /he", drip=b"a"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker with a key, which waits long for sockets that have not shown it."""
    with serving("--auth-timeout-s", "60", env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


async def _outcome(server: Server, case: Case) -> tuple[int | None, float]:
    """Return the status of the answer, and how long the connection lasted."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    began_s, seen = loop.time(), b""
    try:
        writer.write(case.sent)
        while loop.time() - began_s < GIVE_UP_S:
            try:
                data = await asyncio.wait_for(reader.read(1 << 16), 0.5)
            except TimeoutError:
                writer.write(case.drip)
                continue
            except ConnectionError:
                break
            if not data:
                break
            seen += data
        found = re.match(rb"HTTP/1\.1 (\d+)", seen)
        return int(found[1]) if found else None, loop.time() - began_s
    finally:
        writer.transport.abort()


async def test_every_refused_connection_ends_soon(server: Server) -> None:
    outcomes = await asyncio.gather(*(_outcome(server, case) for case in CASES.values()))
    seen = dict(zip(CASES, outcomes, strict=True))
    late = {name: seconds for name, (_, seconds) in seen.items() if seconds > ENDS_WITHIN_S}
    assert not late
    wrong = {name: status for name, (status, _) in seen.items() if status != CASES[name].status}
    assert not wrong
    async with Socket(server, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        assert (await socket.run(**counting(1, 9))).text() == expected_count(1, 9)
    stats = server.get("/v1/stats", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert (stats["sockets"], stats["connections_keyless"]) == (0, 0)
