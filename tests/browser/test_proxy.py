"""The playground behind a real nginx: over TLS and HTTP/2, under a name that the worker does not listen on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.playground import Playground
from tests.e2e.client import count_prompt, expected_count
from tests.support.nginx import NAME, needs_nginx, nginx
from tests.support.server import serving

pytestmark = needs_nginx

KEY = "some-long-secret"


def test_the_playground_works_behind_a_proxy(visit: Callable[..., Playground], tmp_path: Path) -> None:
    with serving("--hosts-allowed", NAME) as server, nginx(server, tmp_path) as proxy:
        at = visit(proxy.origin, ignore_https_errors=True)
        spoken = at.page.evaluate("() => performance.getEntriesByType('navigation')[0].nextHopProtocol")
        assert spoken == "h2"
        at.run(count_prompt(1, 200), temperature=0, max_tokens=1500)
        expect(at.card().locator(".text").first).to_be_visible()
        proxy.reload()
        assert at.wait_done() == expected_count(1, 200)
        proxy.restart()
        at.run(count_prompt(1, 30), temperature=0, max_tokens=1500)
        assert at.wait_done(2) == expected_count(1, 30)


def test_all_pages_work_below_a_path(visit: Callable[..., Playground], tmp_path: Path) -> None:
    """With a key, a link to share, a reload, the reference, and another worker's page beside it."""
    with (
        serving("--hosts-allowed", NAME, env={"JOBWIRE_API_KEY": KEY}) as server,
        nginx(server, tmp_path) as proxy,
    ):
        at = visit(f"{proxy.origin}/llm/", ignore_https_errors=True)
        at.page.fill("#key", KEY)
        at.page.click("#key-save")
        at.run(count_prompt(1, 30), temperature=0, max_tokens=1500)
        assert at.wait_done() == expected_count(1, 30)
        expect(at.page.locator("#link")).to_have_attribute("data-state", "open")
        at.press("Share")
        link = at.page.locator("#share-link").input_value()
        assert link.startswith(f"{proxy.origin}/llm/#watch=%2Fllm%2Fv1%2Fjobs%2F")
        watching = at.open(link)
        expect(watching.locator(".text").first).to_have_text(expected_count(1, 30))
        expect(watching.get_by_role("link", name="Open the playground")).to_have_attribute(
            "href", f"{proxy.origin}/llm/"
        )
        at.page.reload()
        expect(at.card().locator(".text").first).to_have_text(expected_count(1, 30))
        for name, address in (("HTTP API", "/llm/docs"), ("WebSocket API", "/llm/docs/ws")):
            at.page.get_by_role("link", name=name).click()
            expect(at.page.locator("h1")).to_be_visible()
            assert at.page.url == proxy.origin + address
            assert at.page.evaluate("() => document.styleSheets.length") == 1
            at.page.get_by_role("link", name="Playground").click()
            expect(at.page).to_have_url(f"{proxy.origin}/llm/")
        at.page.goto(f"{proxy.origin}/")
        expect(at.page.locator("#key-row")).to_be_visible()
        expect(at.card()).to_have_count(0)
