"""The opening handshake of a WebSocket (RFC 6455, section 4.2): reads the head of a request, and answers it. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from email.utils import formatdate
from hashlib import sha1
from http import HTTPStatus

import h11

from worker.transports.access.prefixes import Prefixes
from worker.transports.correlation import ANSWER_HEADER, correlation_of
from worker.transports.front.heads import fault, problem
from worker.transports.front.websockets.sessions import Opening
from worker.transports.room import Peer

HEAD_END = re.compile(rb"\n\r?\n")
GET = b"GET "
TARGET = re.compile(rb"GET ([^ ?\r\n]*)[ ?\r\n]")
VERSION = "13"
KEY_BYTES = 16
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class RefusedHandshake(Exception):
    """A handshake whose answer, `answer`, is a refusal."""

    def __init__(self, status: int, detail: str, *headers: str) -> None:
        super().__init__(detail)
        body = problem(status, detail)
        about = ("Content-Type: application/problem+json", f"Content-Length: {len(body)}", "Connection: close")
        self.answer = _answer(status, *headers, *about) + body


class Handshake:
    """A request to upgrade to a WebSocket. `head` is all that was received of it."""

    def __init__(self, request: h11.Request, head: bytes) -> None:
        self._request = request
        self._head = head
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        self.path = request.target.partition(b"?")[0].decode("latin-1")

    def opening(self, prefixes: Prefixes, client: str, peer: Peer) -> Opening:
        """Return it in the words of the dialects. It came from the address `client`."""
        prefix = prefixes.prefix_of(client, self._request.headers)
        path = self.path.removeprefix(prefix) if self.path.startswith(prefix + "/") else self.path
        offered = tuple(_words(self._request, b"sec-websocket-protocol"))
        return Opening(path, prefix, peer, self._headers, offered, correlation_of(self._headers))

    def accept(self, opening: Opening, subprotocol: str | None) -> bytes:
        """Return the answer to a valid handshake. Raises RefusedHandshake.

        No extension is ever agreed upon: permessage-deflate doubles the CPU time of a frame and costs 90 KiB per
        connection.
        """
        chosen = [] if subprotocol is None else [f"Sec-WebSocket-Protocol: {subprotocol}"]
        return _answer(
            101,
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {self._acceptance()}",
            f"{ANSWER_HEADER}: {opening.correlation.correlation_id}",
            *chosen,
        )

    def _acceptance(self) -> str:
        """Return what proves that the handshake was understood. Raises RefusedHandshake."""
        headers, end = self._headers, HEAD_END.search(self._head)
        if headers.get("sec-websocket-version") != VERSION:
            detail = f"Only version {VERSION} of the WebSocket protocol is spoken here."
            raise RefusedHandshake(426, detail, f"Sec-WebSocket-Version: {VERSION}")
        key = headers.get("sec-websocket-key", "")
        if self._request.http_version < b"1.1" or not _is_key(key):
            raise RefusedHandshake(400, "A handshake is a request of HTTP/1.1 with a Sec-WebSocket-Key of 16 bytes.")
        if end is None or end.end() < len(self._head):
            # Frames are sent after the answer: what comes before it was meant for somebody else.
            raise RefusedHandshake(400, "Something came behind the handshake. Send nothing before it is answered.")
        return base64.b64encode(sha1(key.encode() + GUID, usedforsecurity=False).digest()).decode()


def may_be(head: bytes, paths: Iterable[str]) -> bool:
    """Return whether a request that begins so may be a handshake at one of the paths, below any prefix."""
    target = TARGET.match(head)
    if target is None:
        return head.startswith(GET) or GET.startswith(head)
    return any(target[1].endswith(path.encode()) for path in paths)


def read(head: bytes) -> Handshake | None:
    """Return the handshake that bytes begin with; None if that is another request, or one that is malformed."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(head)
    try:
        request = reader.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request) or request.method != b"GET":
        return None
    upgrade, connection = ([word.lower() for word in _words(request, name)] for name in (b"upgrade", b"connection"))
    upgrades = upgrade == ["websocket"] and "upgrade" in connection
    return Handshake(request, head) if upgrades and fault(request.headers) is None else None


def _answer(status: int, *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Date: {formatdate(usegmt=True)}", *headers, "", "")
    return "\r\n".join(lines).encode("latin-1")


def _words(request: h11.Request, name: bytes) -> list[str]:
    """Return the words of all headers of a name, which are separated by commas."""
    values = [value.decode("latin-1") for given, value in request.headers if given == name]
    return [word.strip() for value in values for word in value.split(",")]


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == KEY_BYTES
    except (binascii.Error, ValueError):
        return False
