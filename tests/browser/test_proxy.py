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
