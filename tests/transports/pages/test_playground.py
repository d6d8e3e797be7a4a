"""The files of the playground: what is served, to whom, under which policy, and that an installation has them all."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server
from worker.transports.pages.playground import TYPES

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "worker/transports/pages/playground/static"
FILES = sorted(path.relative_to(STATIC).as_posix() for path in [*STATIC.glob("*.*"), *STATIC.glob("jobwire/*.*")])
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def page(server: Server) -> httpx.Response:
    """The page, as a browser gets it."""
    return server.get("/", headers=BROWSER)


def directives(response: httpx.Response) -> dict[str, list[str]]:
    """The policy of a response, by directive."""
    parts = [part.split() for part in response.headers["Content-Security-Policy"].split(";")]
    return {name: values for name, *values in parts}


def test_a_browser_gets_the_page_and_a_program_gets_text(server: Server, page: httpx.Response) -> None:
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<title>Jobwire playground</title>" in page.text
    for headers in ({"Accept": "*/*"}, {"Accept": "text/plain"}, {"Accept": "application/json"}):
        text = server.get("/", headers=headers)
        assert (text.status_code, text.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert "/v1/jobs" in text.text
        assert text.headers["Vary"] == "Accept"


def test_the_policy_allows_what_the_page_needs_and_no_more(server: Server, page: httpx.Response) -> None:
    host = server.url.removeprefix("http://")
    assert directives(page) == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'"],
        "connect-src": ["'self'", f"ws://{host}", f"wss://{host}"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["'none'"],
    }
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["localhost; script-src *", "localhost:80 *", "localhost,evil", "[::1] *"])
def test_a_host_cannot_write_into_the_policy(server: Server, host: str) -> None:
    answer = server.get("/", headers={**BROWSER, "Host": host})
    if answer.status_code == 200:
        assert directives(answer)["connect-src"] == ["'self'"]
        assert directives(answer)["script-src"] == ["'self'"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_and_kept_by_the_browser(server: Server, name: str) -> None:
    first = server.get(f"/playground/{name}")
    assert first.content == (STATIC / name).read_bytes()
    assert first.headers["Content-Type"] == TYPES[Path(name).suffix]
    assert first.headers["Cache-Control"] == "no-cache"
    assert "Content-Security-Policy" in first.headers
    again = server.get(f"/playground/{name}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.get(f"/playground/{name}", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/playground/",
        "/playground/__init__.py",
        "/playground/../http.py",
        "/playground/%2e%2e/http.py",
        "/playground/..%2f..%2fhttp.py",
        "/playground/static/main.js",
        "/playground/main.js/",
        "/playground//etc/passwd",
        "/playground/main.js%00",
    ],
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    assert server.get(path).status_code == 404


def test_everything_the_page_and_its_modules_name_is_there(page: httpx.Response) -> None:
    named = set(re.findall(r'(?:src|href)="playground/([^"]+)"', page.text))
    for name in FILES:
        imports = re.findall(
            r'^(?:im|ex)port .* from "\./([^"]+[.]js)";$', (STATIC / name).read_text("utf-8"), re.MULTILINE
        )
        named |= {(Path(name).parent / imported).as_posix() for imported in imports}
    assert named == {name for name in FILES if name != "index.html"}


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(page: httpx.Response) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.*") if path.suffix in (".html", ".css"))
    assert not re.search(r"https?://|@import|url\(|\son\w+=|\sstyle=|<style|<script>", text)


def test_an_icon_is_there_for_every_page(server: Server) -> None:
    icon = server.get("/favicon.ico")
    assert (icon.status_code, icon.headers["Content-Type"]) == (200, "image/svg+xml")


def test_head_tells_what_get_would(server: Server) -> None:
    answer = httpx.head(server.url + "/", headers=BROWSER)
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_wheel_has_all_files_and_the_client_itself(tmp_path: Path) -> None:
    """The client is a link in the repository: an installation must have its text."""
    copy = tmp_path / "source"
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = re.compile(r"worker/transports/|worker/[^/]+$|clients/javascript/jobwire(/.*)?\.js$|[^/]+$")
    for name in filter(wanted.match, listing.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    build = [sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", str(tmp_path), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            assert archive.read(f"worker/transports/pages/playground/static/{name}") == (STATIC / name).read_bytes()
