"""The pages of the documents in a real browser: no complaint, no wide page on a phone, readable for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from tests.support.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGES = ("/docs", "/docs/ws")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_everybody_can_read_them(browser: Browser, server: Server, path: str, scheme: Literal["light", "dark"]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # axe is a script, and the page's own policy allows none.
    with browser.new_context(color_scheme=scheme, bypass_csp=True) as context:
        page = context.new_page()
        page.goto(server.url + path)
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("path", PAGES)
def test_they_fit_the_screen_and_load_without_complaint(
    browser: Browser, server: Server, path: str, width: int
) -> None:
    complaints: list[str] = []
    with browser.new_context(viewport={"width": width, "height": 800}) as context:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(server.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("getComputedStyle(document.querySelector('header')).position") == "sticky"
    assert complaints == []


def test_an_anchor_leads_to_its_route(browser: Browser, server: Server) -> None:
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.goto(server.url + "/docs")
        page.click("nav.contents a[href='#streamJob']")
        heading = page.locator("#streamJob h3")
        box = heading.bounding_box()
        assert box is not None
        assert 40 <= box["y"] <= 400
        assert heading.inner_text().split() == ["GET", "/v1/jobs/{job_id}/stream"]
