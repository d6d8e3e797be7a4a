"""`/docs`, `/docs/ws` and the documents behind them: public, made once, and answered with 304 if unchanged.

The pages need no script, and their policy forbids any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files

import msgspec
from quart import Blueprint, Response

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


def blueprint(gateway: Gateway) -> Blueprint:
    """Return the routes of the reference."""
    library = Library(gateway.operations.values(), __version__)
    routes = Blueprint("reference", __name__)
    for path, content_type, make in documents(library):
        view = _Document(content_type, make)
        routes.add_url_rule(path, path.strip("/").replace("/", "_").replace(".", "_"), view.show)
    return routes


def documents(library: Library) -> Iterable[tuple[str, str, Callable[[], bytes]]]:
    """Return path, content type and maker of each document."""
    return (
        ("/schema.json", JSON, lambda: msgspec.json.encode(library.json_schema)),
        ("/openapi.json", JSON, lambda: msgspec.json.encode(library.openapi)),
        ("/asyncapi.json", JSON, lambda: msgspec.json.encode(library.asyncapi)),
        ("/docs", HTML, lambda: http_page(library.openapi).encode()),
        ("/docs/ws", HTML, lambda: websocket_page(library.asyncapi).encode()),
        (f"/docs/{STYLE}", CSS, lambda: files(__package__).joinpath(STYLE).read_bytes()),
    )


class _Document:
    """One document: made on the first request, and kept with its tag."""

    def __init__(self, content_type: str, make: Callable[[], bytes]) -> None:
        self._content_type = content_type
        self._make = make
        self._body: bytes | None = None
        self._tag = ""

    async def show(self) -> Response:
        """Answer with the document, or with 304 if the client's copy is current."""
        if self._body is None:
            self._body = self._make()
            self._tag = tag_of(self._body)
        return answer(self._body, self._tag, self._content_type, HEADERS)
