"""The JavaScript client in a real Chromium, in a page of another origin than the worker's: WebSocket and fetch as
browsers have them, with their CORS; and a share link in a plain EventSource.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("playwright.sync_api")

from tests.browser.conftest import browser
from tests.clients.conftest import CLIENTS
from tests.clients.test_readme import at, samples
from tests.support.server import Server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]
FOX = '"Tell me a story about a fox"'
PATIENCE_MS = 60_000
BOTH_WAYS = """async ([url, transport]) => {
  const {connect, watch} = await import("./jobwire.js");
  const jw = connect(url, {token: () => "secret", transport, frames: "paint"});
  const job = await jw.create("Count from 1 to 60", {temperature: 0, max_tokens: 200});
  const link = new URL(job.accepted.sse_url, url);
  const plain = new Promise((resolve, reject) => {
    const source = new EventSource(link);
    let text = "";
    source.onerror = reject;
    source.onmessage = ({data}) => {
      const frame = JSON.parse(data);
      if (frame.type === "token") text += frame.text;
      if (frame.type === "end") resolve(text, source.close());
    };
  });
  const texts = await Promise.all([job.text(), watch(link).text(), plain]);
  jw.close();
  return [jw.transport, job.id, ...texts];
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing of each request."""


@contextlib.contextmanager
def site(folder: Path) -> Iterator[str]:
    """Serve a folder with the client in it; yield its origin."""
    shutil.copy(CLIENTS / "javascript/jobwire.js", folder)
    shutil.copytree(CLIENTS / "javascript/jobwire", folder / "jobwire")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def page_of(browser: Browser, url: str) -> Iterator[Page]:
    """A page without complaints; browsers ask for an icon of their own accord."""
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        page.goto(url)
        yield page
        assert complaints == []


def test_the_page_of_the_readme(browser: Browser, tmp_path: Path) -> None:
    with site(tmp_path) as origin, serving("--origins-allowed", origin) as server:
        sample = at(samples("html")[0], server.url)
        assert FOX in sample
        # Without a seed a story may begin with anything.
        (tmp_path / "page.html").write_text(sample.replace(FOX, f"{FOX}, {{seed: 3}}"), encoding="utf-8")
        with page_of(browser, f"{origin}/page.html") as page:
            page.wait_for_function("document.querySelector('#out').textContent.length > 20")
            page.click("#stop")
            (job,) = server.get("/v1/jobs").json()["jobs"]
            text = _when_ended(server, job["job_id"])["text"]
            page.wait_for_function("text => document.querySelector('#out').textContent === text", arg=text)
            assert re.match(r"\w", text)


@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_a_job_with_a_key_and_its_share_link(browser: Browser, tmp_path: Path, transport: str) -> None:
    (tmp_path / "page.html").write_text("<!doctype html><title>A page</title>", encoding="utf-8")
    with (
        site(tmp_path) as origin,
        serving("--origins-allowed", origin, "--api-key", "secret") as server,
        page_of(browser, f"{origin}/page.html") as page,
    ):
        carried, job_id, *texts = page.evaluate(BOTH_WAYS, [server.url, transport])
        assert carried == transport
        assert texts == [_when_ended(server, job_id, Authorization="Bearer secret")["text"]] * 3


def _when_ended(server: Server, job_id: str, **headers: str) -> Any:
    while True:
        job = server.get(f"/v1/jobs/{job_id}", headers={"Accept": "application/json", **headers}).json()
        if job["state"] == "ended":
            return job
