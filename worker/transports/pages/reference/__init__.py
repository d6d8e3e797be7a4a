"""`/docs`, `/docs/ws` and the documents behind them: public, kept once made, and answered with 304 if unchanged.

The pages need no script, and their policy forbids any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import TypeAlias

import msgspec
from quart import Blueprint, Response, request

from worker import __version__
from worker.protocol.describe.library import Library
from worker.transports.gateway import Gateway
from worker.transports.pages.reference.pages import http_page, websocket_page
from worker.transports.pages.tagged import answer, tag_of

STYLE = "style.css"
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HTML, CSS, JSON = "text/html; charset=utf-8", "text/css; charset=utf-8", "application/json"


MADE_MAX = 16
"""How many versions of a document are kept: one for each prefix of a proxy."""

Make: TypeAlias = Callable[[str], bytes]
"""Makes a document for a caller below a path of a proxy; empty without one."""


def blueprint(gateway: Gateway) -> Blueprint:
    """Return the routes of the reference."""
    library = Library(gateway.operations.values(), __version__)
    routes = Blueprint("reference", __name__)
    for path, content_type, make in documents(library):
        view = _Document(content_type, make)
        routes.add_url_rule(path, path.strip("/").replace("/", "_").replace(".", "_"), view.show)
    return routes


def documents(library: Library) -> Iterable[tuple[str, str, Make]]:
    """Return path, content type and maker of each document."""
    encode = msgspec.json.encode
    return (
        ("/schema.json", JSON, lambda _: encode(library.json_schema)),
        ("/openapi.json", JSON, lambda prefix: encode(library.openapi_below(prefix) if prefix else library.openapi)),
        ("/asyncapi.json", JSON, lambda prefix: encode(library.asyncapi_below(prefix) if prefix else library.asyncapi)),
        # The addresses in pages are relative.
        ("/docs", HTML, lambda _: http_page(library.openapi).encode()),
        ("/docs/ws", HTML, lambda _: websocket_page(library.asyncapi).encode()),
        (f"/docs/{STYLE}", CSS, lambda _: files(__package__).joinpath(STYLE).read_bytes()),
    )


class _Document:
    """One document: made when it is first asked for below a prefix, and kept with its tag."""

    def __init__(self, content_type: str, make: Make) -> None:
        self._content_type = content_type
        self._make = make
        self._made: dict[str, tuple[bytes, str]] = {}

    async def show(self) -> Response:
        """Answer with the document, or with 304 if the client's copy is current."""
        prefix = request.root_path
        if prefix not in self._made:
            if len(self._made) >= MADE_MAX:
                # A proxy may pass on any prefix that a stranger thinks of.
                self._made.clear()
            body = self._make(prefix)
            self._made[prefix] = body, tag_of(body)
        body, tag = self._made[prefix]
        return answer(body, tag, self._content_type, HEADERS)
