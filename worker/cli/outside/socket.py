"""Does a WebSocket get through, as a page of the worker opens one, and does it stay?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from worker.cli.findings import Finding
from worker.cli.outside.way import TIMEOUT_S, Way
from worker.protocol.closing import CloseCode
from worker.protocol.frames import PROTOCOL

UPGRADE = (
    "In nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    "proxy_set_header Connection $connection_upgrade; with the map of worker/deploy/nginx.conf."
)


def open_socket(way: Way, path: str, origin: str | None) -> ClientConnection:
    """Open a WebSocket. Raises OSError, InvalidHandshake."""
    return connect(
        f"{'wss' if way.tls else 'ws'}://{way.netloc}{path}",
        ssl=way.tls,
        origin=None if origin is None else Origin(origin),
        subprotocols=[Subprotocol(PROTOCOL)],
        additional_headers=way.bearer,
        open_timeout=TIMEOUT_S,
        close_timeout=1,
        ping_interval=None,
        proxy=None,
    )


def check_socket(way: Way) -> Iterator[Finding]:
    """Does the handshake reach the worker, and may the worker's own pages connect?"""
    path = f"{way.prefix}/v1/ws"
    try:
        with open_socket(way, path, way.origin) as opened:
            hello = json.loads(opened.recv(TIMEOUT_S))
            way.coalesce_ms = min(way.coalesce_ms, hello["limits"]["max_coalesce_ms"])
            opened.send('{"type": "ping", "t": 1}')
            opened.recv(TIMEOUT_S)
    except InvalidStatus as error:
        status = error.response.status_code
        what = f"No WebSocket gets through: {status} in place of 101"
        yield Finding("problem", what, "" if status in (401, 403, 429, 502, 503, 504) else UPGRADE)
    except ConnectionClosed as end:
        yield _refused(way, path, end)
    except (OSError, InvalidHandshake, ValueError, KeyError, TypeError) as error:
        yield Finding("problem", f"No WebSocket gets through: {error or type(error).__name__}", UPGRADE)
    else:
        yield Finding("ok", f"WebSockets get through, and speak {hello['protocol']}")


def _refused(way: Way, path: str, end: ConnectionClosed) -> Finding:
    code, reason = (end.rcvd.code, end.rcvd.reason) if end.rcvd else (1006, "without a word")
    what = f"The WebSocket was closed with {code}: {reason}"
    if code != CloseCode.FORBIDDEN:
        return Finding("problem", what)
    try:
        with open_socket(way, path, None) as opened:
            opened.recv(TIMEOUT_S)
    except (OSError, InvalidHandshake, ConnectionClosed):
        return Finding("problem", what, f"--hosts-allowed {way.host}")
    fix = f"In nginx: proxy_set_header Host $http_host; or allow the page: --origins-allowed {way.origin}"
    return Finding("problem", f"Browsers are refused, programs are not. {what}", fix)


def check_idle(way: Way, idle_s: float) -> Iterator[Finding]:
    """Does a connection stay on which the client says nothing?"""
    until_s = time.monotonic() + idle_s
    try:
        with open_socket(way, f"{way.prefix}/v1/ws", way.origin) as opened:
            while (left_s := until_s - time.monotonic()) > 0:
                try:
                    opened.recv(left_s)
                except TimeoutError:
                    break
    except ConnectionClosed:
        after_s = idle_s - (until_s - time.monotonic())
        fix = "In nginx: proxy_read_timeout 60s; or let the worker speak more often: --heartbeat-s"
        yield Finding("problem", f"A silent WebSocket was cut after {after_s:.0f} s", fix)
    except (OSError, InvalidHandshake) as error:
        yield Finding("problem", f"No WebSocket gets through: {error}", UPGRADE)
    else:
        yield Finding("ok", f"A silent WebSocket lasts for {idle_s:g} s")
