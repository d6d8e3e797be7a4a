"""Whose keys there are, and what attacks are made of: connections that send for ever, whatever the worker does."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from tests.conformance.rawsocket import handshake, text

Conduct: TypeAlias = Callable[[socket.socket], None]
"""What is done on one connection. When it returns, or the worker closes, the connection is closed and opened again."""

SOCKETS = 4
"""Connections of one attack, where it is not connections themselves that it sends."""

AGAIN_S = 0.001
"""Pause before a connection that was closed is opened again."""

READ_BYTES = 1 << 18
SMALL_BUFFER_BYTES = 4096
INNOCENT, ATTACKER, WRONG = "innocent-0123456789", "attacker-0123456789", "nobodys-0123456789"


def keys_file(folder: Path) -> Path:
    """Write the keys of both sides to a file, for `--keys-file`: each is an account of its own."""
    path = folder / "keys.toml"
    path.touch(mode=0o600)
    named = {"innocent": INNOCENT, "attacker": ATTACKER}
    path.write_text("".join(f'[[keys]]\nname = "{name}"\nkey = "{key}"\n' for name, key in named.items()))
    return path


# ---- what is sent ----------------------------------------------------------------------------------------------------


def bearer(key: str) -> str:
    """Return the header line that shows a key. A worker without keys does not look at it."""
    return f"Authorization: Bearer {key}"


KEYED = bearer(ATTACKER)
AS_JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """Return a request as bytes."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode("latin-1") + body


def post(fields: dict[str, Any], *headers: str) -> bytes:
    """Return the request that creates a job."""
    body = json.dumps(fields).encode()
    return request("POST /v1/jobs", KEYED, AS_JSON, f"Content-Length: {len(body)}", *headers, body=body)


def frame(kind: str, **fields: Any) -> bytes:
    """Return one frame of the protocol in one text message."""
    return text(json.dumps({"type": kind, **fields}))


# ---- how -------------------------------------------------------------------------------------------------------------


def flood(port: int, conduct: Conduct, sockets: int = SOCKETS) -> NoReturn:
    """Do the same on some connections at a time, for ever."""
    for _ in range(sockets):
        threading.Thread(target=_again_and_again, args=(port, conduct), daemon=True).start()
    while True:
        time.sleep(60)


def _again_and_again(port: int, conduct: Conduct) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as plain:
            conduct(plain)
        time.sleep(AGAIN_S)


def http(*parts: bytes, then: bytes = b"") -> Conduct:
    """Return the conduct that sends some bytes, then others over and over, and throws answers away."""

    def conduct(plain: socket.socket) -> None:
        with thrown_away(plain):
            send_all(plain, itertools.chain(parts, itertools.repeat(then) if then else ()))
            if not then:
                wait_for_end(plain)

    return conduct


def websocket(parts: Callable[[], Iterable[bytes]], key: str | None = ATTACKER, first: bytes = b"") -> Conduct:
    """Return the conduct that opens a WebSocket, with a key or without, sends `first`, then the parts."""

    def conduct(plain: socket.socket) -> None:
        greet(plain, key)
        with thrown_away(plain):
            send_all(plain, itertools.chain([first], parts()))

    return conduct


def greet(plain: socket.socket, key: str | None = ATTACKER) -> None:
    """Make a WebSocket of a connection. Raises ConnectionError if it is refused."""
    plain.sendall(handshake({"Authorization": f"Bearer {key}" if key else None}))
    head = b""
    while b"\r\n\r\n" not in head:
        data = plain.recv(4096)
        if not data:
            raise ConnectionError("closed instead of a handshake")
        head += data
    if b" 101 " not in head:
        raise ConnectionError("no handshake")


def send_all(plain: socket.socket, parts: Iterable[bytes]) -> None:
    """Send one part after the other. Raises OSError once the worker has closed."""
    for part in parts:
        plain.sendall(part)


@contextlib.contextmanager
def thrown_away(plain: socket.socket) -> Iterator[None]:
    """Read all that comes, and end the connection when the worker does."""

    def read() -> None:
        with contextlib.suppress(OSError):
            while plain.recv(READ_BYTES):
                pass
            plain.shutdown(socket.SHUT_RDWR)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            plain.shutdown(socket.SHUT_RDWR)
        reader.join()


def wait_for_end(plain: socket.socket) -> None:
    """Wait until the worker has closed a connection; reads nothing."""
    closed = select.poll()
    closed.register(plain, select.POLLRDHUP)
    closed.poll()


def crowd(port: int, opening: bytes, count: int) -> NoReturn:
    """Open so many connections as fast as it goes, send something on each and keep it; open those closed again."""
    watch, kept = select.poll(), dict[int, socket.socket]()
    while True:
        while len(kept) < count:
            plain = socket.create_connection(("127.0.0.1", port))
            kept[plain.fileno()] = plain
            with contextlib.suppress(OSError):
                plain.sendall(opening)
            watch.register(plain, select.POLLRDHUP)
            _drop_closed(watch, kept, 0)
        _drop_closed(watch, kept, None)


def _drop_closed(watch: select.poll, kept: dict[int, socket.socket], timeout_ms: int | None) -> None:
    for number, _ in watch.poll(timeout_ms):
        watch.unregister(number)
        kept.pop(number).close()
