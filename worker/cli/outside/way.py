"""The way to a running worker, through whatever stands before it: its URL, and single requests."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import SplitResult, urlsplit

from worker.cli.findings import Finding
from worker.errors import ConfigError

TIMEOUT_S = 10.0
"""How long to wait for a connection, and for each part of an answer."""

BODY_BYTES_MAX = 1 << 20

SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
PORTS = {"http": 80, "https": 443}


class Enough(Exception):
    """Ends the checks: with this finding the later ones would say nothing."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.finding = Finding("problem", what, fix)


@dataclass(frozen=True)
class Answer:
    """An answer over HTTP, at most BODY_BYTES_MAX of it. `fields` are those of a JSON object."""

    status: int
    headers: Message
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON object in the body, empty if it holds none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass
class Way:
    """Where the worker is, and what the checks have learnt of it."""

    scheme: str
    host: str
    port: int
    prefix: str
    key: str = ""
    certificates: str | None = None
    needs_key: bool = False
    coalesce_ms: int = 500
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, key: str, certificates: str | None) -> Way:
        """Return the way to a URL in any form that clients take. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = SplitResult("", "", "", "", ""), None
        scheme = SCHEMES.get(parts.scheme)
        if scheme is None or not parts.hostname:
            raise ConfigError(f"--url is {url!r}, but must be one like https://chat.example.com/llm.")
        prefix = parts.path.rstrip("/").removesuffix("/v1/ws")
        return cls(scheme, parts.hostname, port or PORTS[scheme], prefix, key, certificates)

    @property
    def netloc(self) -> str:
        """Host and port as a browser sends them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The origin of the worker's own pages."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def bearer(self) -> dict[str, str]:
        """The header with the key, if there is one."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def open(self) -> http.client.HTTPConnection:
        """Return a connection that is opened by its first request."""
        if self.scheme == "https":
            return http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_S, context=self.tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request for a path of the host. Raises OSError, http.client.HTTPException."""
        connection = self.open()
        try:
            fields = {"Accept": "application/json", "Connection": "close", **(headers or {})}
            data = None
            if body is not None:
                fields["Content-Type"], data = "application/json", json.dumps(body)
            connection.request(method, path, data, fields)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read(BODY_BYTES_MAX))
        finally:
            connection.close()
