"""`/`: the playground for people with a browser, a page of text for everyone else.

Plain HTML, CSS and ES modules, served from `static/` as they are: no build step and nothing from other hosts. The
policy sent with each file allows only what this page needs, so a text that a model wrote can never become a script.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from quart import Blueprint, Response, request

from worker import __version__
from worker.transports.pages.tagged import answer, tag_of

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE, ICON = "index.html", "favicon.svg"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {sources}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PLAIN_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
"""A Host that may be quoted in a policy. Not in every browser does `'self'` allow WebSockets of the same host."""

INDEX = f"""Jobwire {__version__}, the realtime LLM worker.

  WebSocket  /v1/ws                  subprotocol jobwire.v1
  POST       /v1/jobs                create a job; with Accept: text/event-stream it streams at once
  GET        /v1/jobs                your jobs
  GET        /v1/jobs/ID             state, text so far, cursor
  GET        /v1/jobs/ID/stream      server-sent events; resumes with Last-Event-ID or ?after=
  DELETE     /v1/jobs/ID             cancel
  GET        /health  /v1/ready  /v1/loading/progress
  GET        /docs  /docs/ws         every call and every frame
  GET        /                       in a browser: the playground
"""


class _File(NamedTuple):
    """A served file, and the tag of its content."""

    content: bytes
    content_type: str
    tag: str


def blueprint() -> Blueprint:
    """Return the routes of the playground: the page at `/`, and its other files under `/playground/`."""
    served = _load()
    routes = Blueprint("playground", __name__)

    async def front() -> Response:
        accept = request.accept_mimetypes
        # The `*/*` of curl accepts HTML too, but does not ask for it.
        if accept.best_match(["text/plain", "text/html"]) != "text/html":
            below = f"\nAll paths are below {request.root_path} here.\n" if request.root_path else ""
            return Response(INDEX + below, headers={"Vary": "Accept"}, content_type="text/plain; charset=utf-8")
        return _answer(served[PAGE])

    async def file(name: str) -> Response:
        return _answer(served[name])

    routes.add_url_rule("/", "front", front)
    # Browsers request it for every page that names no icon.
    routes.add_url_rule("/favicon.ico", "icon", file, defaults={"name": ICON})
    # Only known names are routes: any other name is not found.
    for name in served:
        routes.add_url_rule(f"/playground/{name}", name.replace(".", "_"), file, defaults={"name": name})
    return routes


def _load() -> dict[str, _File]:
    """Read the static files into memory, by their path in the folder."""
    loaded = {}
    for name, entry in _walk(files(__package__).joinpath("static")):
        content_type = TYPES.get("." + name.rpartition(".")[2])
        if content_type is not None:
            content = entry.read_bytes()
            loaded[name] = _File(content, content_type, tag_of(content))
    return loaded


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _answer(file: _File) -> Response:
    """Answer with a file, or with 304 if the browser's copy is current."""
    host = request.host
    sources = f"'self' ws://{host} wss://{host}" if PLAIN_HOST.fullmatch(host) else "'self'"
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY.format(sources=sources),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    return answer(file.content, file.tag, file.content_type, headers)
