"""What the worker serves about itself: public, cacheable, true of every route, and safe to open."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest

from tests.protocol.describe.renew import LIBRARY
from tests.support.server import Server, serving
from worker.app import Worker
from worker.config import Settings

JSON = {"/openapi.json": "openapi", "/asyncapi.json": "asyncapi", "/schema.json": "json_schema"}
PAGES = ("/docs", "/docs/ws")
EVERY = (*JSON, *PAGES, "/docs/style.css")
BESIDE_PAGES = ("/docs/style.css", "/favicon.ico", "/playground/")
"""Files that belong to a page are no part of the interface."""


PLACE = re.compile(r"<(?:[a-z]+:)?(\w+)>")
"""How Quart writes what OpenAPI writes in braces."""


class Page(html.parser.HTMLParser):
    """The anchors, links and tags of a page. Fails if a tag is not closed."""

    EMPTY = frozenset({"meta", "link", "br", "hr", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} closes another tag, at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A worker that wants a key."""
    with serving("--engine-start-timeout-s", "600", env={"JOBWIRE_API_KEY": "a-secret"}, ready=False) as server:
        yield server


# ---- as files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "name"), JSON.items())
def test_programs_get_the_documents(server: Server, path: str, name: str) -> None:
    answer = server.get(path)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == getattr(LIBRARY, name)


@pytest.mark.parametrize("path", EVERY)
def test_they_need_no_key(guarded: Server, path: str) -> None:
    assert guarded.get(path).status_code == 200
    assert guarded.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize("path", EVERY)
def test_a_copy_that_is_good_is_not_sent_again(server: Server, path: str) -> None:
    first = server.get(path)
    assert first.headers["Cache-Control"] == "no-cache"
    again = server.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert "Content-Length" not in again.headers
    other = server.get(path, headers={"If-None-Match": '"another"'})
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize("path", EVERY)
def test_other_hosts_and_origins_are_refused_here_too(server: Server, path: str) -> None:
    assert server.get(path, headers={"Host": "evil.example"}).status_code == 403
    assert server.get(path, headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("path", EVERY)
def test_nothing_can_run_in_them(server: Server, path: str) -> None:
    headers = server.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["style-src"] == "'self'"
    assert not [name for name in policy if name.startswith("script")]
    assert headers["X-Content-Type-Options"] == "nosniff"


# ---- as pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_needs_nothing_from_elsewhere(server: Server, path: str) -> None:
    page = Page(server.get(path).text)
    assert not page.tags & {"script", "iframe", "object", "style"}
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]
    assert {"lang", "content"} <= page.attributes
    assert not [link for link in page.links if "//" in link]


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(server: Server, path: str) -> None:
    page = Page(server.get(path).text)
    assert len(set(page.ids)) == len(page.ids)
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert inner <= set(page.ids), inner - set(page.ids)
    for link in {link for link in page.links if not link.startswith("#")}:
        # A proxy may have put the worker below a path.
        assert not link.startswith("/")
        assert server.get(urljoin(path, link)).status_code == 200


def test_the_page_of_the_websocket_has_every_frame_with_its_fields_and_examples(server: Server) -> None:
    page = Page(server.get("/docs/ws").text)
    text = " ".join(page.texts)
    for tag, message in LIBRARY.asyncapi["components"]["messages"].items():
        assert tag in page.ids
        for example in message["examples"]:
            assert json.dumps(example["payload"]["type"]) in text
            assert example["summary"].partition("`")[0] in text
        for field in LIBRARY.json_schema["$defs"][message["payload"]["$ref"].rpartition("/")[2]]["properties"]:
            assert field in page.texts


def test_the_page_of_http_has_every_route_and_error(server: Server) -> None:
    page = Page(server.get("/docs").text)
    for path, methods in LIBRARY.openapi["paths"].items():
        assert path in page.texts
        for operation in methods.values():
            assert operation["operationId"] in page.ids
            assert operation["summary"] in page.texts
    for code in re.findall(r"^\| `(\w+)` \| \d{3} \|", LIBRARY.markdown, re.MULTILINE):
        assert f"error-{code}" in page.ids


# ---- true of the worker ----------------------------------------------------------------------------------------------


def routes_served() -> set[str]:
    """Method and path of every route of the application."""
    rules = Worker(Settings(), print).application().url_map.iter_rules()
    return {
        f"{method} " + PLACE.sub(r"{\1}", rule.rule)
        for rule in rules
        if not rule.rule.startswith(BESIDE_PAGES)
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_every_route_is_documented_and_every_documented_route_is_served() -> None:
    documented = {
        f"{method.upper()} {path}" for path, methods in LIBRARY.openapi["paths"].items() for method in methods
    }
    served = routes_served()
    assert served - documented == set(), "served, and not in worker/protocol/describe/routes.py"
    assert documented - served == set(), "in worker/protocol/describe/routes.py, and not served"
