"""A real Chromium for tests of what people see. Debian's package is used: the tests download no browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.playground import Playground

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.example.com 127.0.0.1",
)


def chromium() -> str | None:
    """Return the path of a Chromium of this machine, or None."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a module. It ends with the module: no other test must meet its event loop."""
    program = chromium()
    if program is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Playground]]:
    """A function that opens a page in a profile of its own. What it complained about fails the test at its end."""
    opened: list[Playground] = []

    def open_page(url: str, **options: Any) -> Playground:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        opened.append(Playground(browser.new_context(**options), url))
        return opened[-1]

    yield open_page
    complaints = [complaint for playground in opened for complaint in playground.complaints]
    for playground in opened:
        playground.context.close()
    assert complaints == []
