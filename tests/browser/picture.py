"""The picture of the playground in README.md: `python -m tests.browser.picture` renews it.

It shows a real page with a real worker behind it. The engine stands still while jobs are created, so that all of them
begin together, and while the picture is taken, so that none has ended.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import worker.transports.pages.playground
from tests.browser.conftest import FLAGS, chromium
from tests.browser.playground import Playground
from tests.support.server import Server, serving

PICTURE = Path(worker.transports.pages.playground.__file__).with_name("playground.png")

BYTES_MAX = 200_000

SIZE = {"width": 1180, "height": 1000}

SLOTS = 12
"""Cells of the batch: few enough that some jobs wait."""

COUNTING = "Count from 1 to 120"

FIRST = (
    ("What is the Halden Vale?", 7),
    ("Tell me a story about an owl", 5),
    ("Tell me a story about a dragon", 3),
    ("Tell me a story about a fox", 2),
)
"""Prompts and seeds of the jobs that go first. The page shows the newest of them on top."""

TEXT_CHARS = 140
"""Length of the newest job's text when the picture is taken."""


def picture(browser: Browser, server: Server) -> bytes:
    """Return a PNG of the playground while jobs run in it, and more of them wait than the worker has slots."""
    context = browser.new_context(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
    at = Playground(context, server.url)
    # A wave of jobs before, so that the curve of the rate has a past.
    at.run_many(SLOTS, COUNTING, temperature=0, max_tokens=1500)
    at.wait_summary(f"{SLOTS} done")
    at.page.click("#clear")
    with server.frozen_engine():
        at.run_many(SLOTS, COUNTING, temperature=0, max_tokens=1500, priority=5)
        for prompt, seed in FIRST:
            at.run(prompt, temperature=0.8, max_tokens=400, seed=seed, priority=9)
        at.wait_summary(f"{SLOTS + len(FIRST)} waiting")
    newest = 2 * SLOTS + len(FIRST)
    at.page.wait_for_function(
        "([card, length]) => document.querySelector(card)?.textContent.length > length",
        arg=[f"article[aria-labelledby=job-{newest}] .text", TEXT_CHARS],
    )
    with server.frozen_engine():
        taken = at.page.screenshot()
        at.page.click("#cancel-all")
    context.close()
    return taken


def main() -> None:
    """Make the picture."""
    with serving("--slots", str(SLOTS)) as server, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        taken = picture(browser, server)
        browser.close()
    if len(taken) >= BYTES_MAX:
        raise SystemExit(f"The picture has {len(taken)} bytes, of {BYTES_MAX}. The less it shows, the smaller it is.")
    PICTURE.write_bytes(taken)
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
