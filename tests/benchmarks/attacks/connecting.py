"""Connections and handshakes: many, half ones, refused ones."""

from __future__ import annotations

import socket
import time

from tests.benchmarks.attacks.wire import crowd, flood, http, request, send_all, thrown_away
from tests.conformance.rawsocket import handshake

CROWD = 600
"""Connections of the attacks that keep what they open: more than a default worker grants to those without a key."""

SLOW_S = 0.05
TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(160)
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)


def churn(port: int) -> None:
    """Connect, and close at once."""
    flood(port, lambda _: None)


def churn_of_health(port: int) -> None:
    """Ask for the health, each time on a connection that is cut before the answer."""
    flood(port, lambda plain: plain.sendall(request("GET /health")))


def churn_of_websockets(port: int) -> None:
    """Open WebSockets without a key, and leave before the answer."""
    flood(port, lambda plain: plain.sendall(handshake()))


def silence(port: int) -> None:
    """Open connections and send nothing."""
    crowd(port, b"", CROWD)


def half_requests(port: int) -> None:
    """Open connections and send half a request."""
    crowd(port, b"GET /health HTTP/1.1\r\nHost: loc", CROWD)


def half_handshakes(port: int) -> None:
    """Open connections and send half a handshake."""
    crowd(port, handshake()[:-4], CROWD)


def handshakes_without_key(port: int) -> None:
    """Open WebSockets and send no key."""
    crowd(port, handshake(), CROWD)


def refused_handshakes(port: int) -> None:
    """Send handshakes that are refused, and stay."""
    crowd(port, handshake({"Sec-WebSocket-Key": None}), CROWD)


def refused_versions(port: int) -> None:
    """Send handshakes of another version, and stay."""
    crowd(port, handshake({"Sec-WebSocket-Version": "12"}), CROWD)


def hasty_handshakes(port: int) -> None:
    """Send handshakes with a byte behind, and stay."""
    crowd(port, handshake() + b"x", CROWD)


def unknown_handshakes(port: int) -> None:
    """Send handshakes at a path where there is nothing, and stay."""
    crowd(port, handshake(first="GET /nope HTTP/1.1"), CROWD)


def slow_headers(port: int) -> None:
    """Send a header line now and then."""

    def conduct(plain: socket.socket) -> None:
        with thrown_away(plain):
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            while True:
                plain.sendall(b"X: y\r\n")
                time.sleep(SLOW_S)

    flood(port, conduct, CROWD // 10)


def tls(port: int) -> None:
    """Speak TLS on the plain port."""
    flood(port, http(TLS_HELLO))


def http2(port: int) -> None:
    """Speak HTTP/2 on the plain port."""
    flood(port, http(HTTP2))


def noise(port: int) -> None:
    """Send bytes that are no request."""

    def conduct(plain: socket.socket) -> None:
        with thrown_away(plain):
            send_all(plain, [bytes(range(256)) * 200] * 100)

    flood(port, conduct)


CASES = (
    churn,
    churn_of_health,
    churn_of_websockets,
    silence,
    half_requests,
    half_handshakes,
    handshakes_without_key,
    refused_handshakes,
    refused_versions,
    hasty_handshakes,
    unknown_handshakes,
    slow_headers,
    tls,
    http2,
    noise,
)
