"""The application below the path of a proxy: tells it the prefix of each request, as ASGI's `root_path`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeAlias

from worker.transports.access.prefixes import Prefixes

Message: TypeAlias = MutableMapping[str, Any]
"""A message of ASGI, or a scope: both are dictionaries."""

Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


def mounted(prefixes: Prefixes, app: App) -> App:
    """Return an ASGI application that serves `app` with and without the prefix in the paths of requests."""

    def outer(scope: Message, receive: object, send: Send) -> Coroutine[Any, Any, None]:
        if scope["type"] == "http":
            prefix, path = prefixes.prefix_of((scope.get("client") or [None])[0], scope["headers"]), scope["path"]
            if prefix and path == prefix:
                # The links of a page are relative to its folder.
                query = b"?" + scope["query_string"] if scope["query_string"] else b""
                return _redirect(send, prefix.encode("ascii") + b"/" + query)
            if prefix:
                whole = path if path.startswith(prefix + "/") else prefix + path
                scope = {**scope, "root_path": prefix, "path": whole}
        return app(scope, receive, send)

    return outer


async def _redirect(send: Send, location: bytes) -> None:
    headers = [(b"location", location), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 308, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
