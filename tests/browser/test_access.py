"""The playground of a worker that needs a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.playground import Playground
from tests.e2e.client import count_prompt, expected_count
from tests.support.server import Server, serving

Visit = Callable[..., Playground]
KEY = "a-key-with-ümlaut".encode().hex()
COUNT = {"temperature": 0, "max_tokens": 1500}


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A worker that needs a key."""
    with serving(env={"JOBWIRE_API_KEY": KEY}) as running:
        yield running


def give(at: Playground, key: str) -> None:
    """Type a key."""
    at.page.fill("#key", key)
    at.page.get_by_role("button", name="Use it").click()


def test_the_key_is_asked_for_used_and_kept_for_the_tab(visit: Visit, locked: Server) -> None:
    at = visit(locked.url)
    expect(at.page.get_by_label("This worker needs a key")).to_be_visible()
    expect(at.page.locator("#link-text")).to_have_text("needs a key")
    give(at, KEY)
    expect(at.page.locator("#key-row")).to_be_hidden()
    at.run(count_prompt(1, 30), **COUNT)
    assert at.wait_done() == expected_count(1, 30)
    expect(at.page.locator("#slots i").first).to_be_attached()
    at.page.reload()
    expect(at.page.locator("#slots i").first).to_be_attached()
    expect(at.page.locator("#key-row")).to_be_hidden()
    at.run(count_prompt(1, 10), **COUNT)
    assert at.wait_done(2) == expected_count(1, 10)
    # It is nowhere where it could be seen or kept.
    assert KEY not in at.page.content()
    assert at.page.evaluate("() => Object.keys(localStorage).length") == 0
    assert KEY not in at.page.url


def test_a_wrong_key_is_asked_for_again(visit: Visit, locked: Server) -> None:
    at = visit(locked.url)
    give(at, "wrong")
    expect(at.page.get_by_label("This worker does not know that key")).to_be_visible()
    at.run(count_prompt(1, 30), **COUNT)
    expect(at.page.locator("#complaint")).to_contain_text("key")
    expect(at.page.locator("#key")).to_be_focused()
    expect(at.page.locator("article")).to_have_count(0)
    give(at, KEY)
    expect(at.page.locator("#complaint")).to_be_empty()
    at.run(count_prompt(1, 30), **COUNT)
    assert at.wait_done() == expected_count(1, 30)
    at.complaints = [line for line in at.complaints if "401" not in line]


def test_a_shared_link_needs_no_key(visit: Visit, locked: Server) -> None:
    at = visit(locked.url)
    give(at, KEY)
    at.run(count_prompt(1, 30), **COUNT)
    at.wait_done()
    at.press("Share")
    link = at.page.locator("#share-link").input_value()
    assert KEY not in link
    other = visit(link)
    expect(other.page.locator(".badge")).to_have_text("Done")
    assert "".join(other.page.locator(".text").all_text_contents()) == expected_count(1, 30)


def test_code_names_a_variable_for_the_key(visit: Visit, locked: Server) -> None:
    at = visit(locked.url)
    give(at, KEY)
    for language in ("JavaScript", "Python", "curl"):
        at.page.get_by_role("tab", name=language).click()
        expect(at.page.locator("#code")).to_contain_text("JOBWIRE_API_KEY")
        expect(at.page.locator("#code")).not_to_contain_text(KEY)
