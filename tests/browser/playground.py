"""The playground as a person meets it: what can be typed, pressed and read there."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import BrowserContext, Locator, Page, expect

PATIENCE_MS = 60_000
"""How long to wait for anything at all: the machine may be busy."""

expect.set_options(timeout=PATIENCE_MS)


class Playground:
    """A page in its own context. `complaints` collects errors, and what the page's policy refused."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.complaints: list[str] = []
        context.set_default_timeout(PATIENCE_MS)
        self.page = self._watch(context.new_page())
        self.page.goto(url)

    def _watch(self, page: Page) -> Page:
        page.on("console", lambda message: self._hear(f"{message.type}: {message.text}", message.type))
        page.on("pageerror", lambda error: self.complaints.append(f"pageerror: {error}"))
        page.on("crash", lambda _: self.complaints.append("the page crashed"))
        return page

    def _hear(self, line: str, kind: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(line)

    def open(self, url: str) -> Page:
        """Open another tab."""
        page = self._watch(self.context.new_page())
        page.goto(url)
        return page

    # ---- to do -------------------------------------------------------------------------------------------------------

    def fill(self, prompt: str, **settings: object) -> None:
        """Type a prompt and settings."""
        self.page.fill("#prompt", prompt)
        for name, value in settings.items():
            self.page.fill(f"[name={name}]", str(value))

    def run(self, prompt: str, **settings: object) -> None:
        """Run one job."""
        self.fill(prompt, **settings)
        self.page.click("button[type=submit]")

    def run_many(self, copies: int, prompt: str, **settings: object) -> None:
        """Run a job several times at once."""
        self.fill(prompt, **settings)
        self.page.fill("#copies", str(copies))
        self.page.click("#run-many")

    def press(self, name: str, number: int = 1) -> None:
        """Press a button of a job's card."""
        self.card(number).get_by_role("button", name=name).click()

    # ---- to read -----------------------------------------------------------------------------------------------------

    def card(self, number: int = 1) -> Locator:
        """The card of a job."""
        return self.page.locator(f"article[aria-labelledby=job-{number}]")

    def badge(self, number: int = 1) -> Locator:
        """The state of a job, in words."""
        return self.card(number).locator(".badge")

    def text(self, number: int = 1) -> str:
        """What a job has written, without its narration."""
        return "".join(self.card(number).locator(".text").all_text_contents())

    def narration(self, number: int = 1) -> list[str]:
        """What was said about a job."""
        return self.card(number).locator(".note").all_text_contents()

    def wait_done(self, number: int = 1) -> str:
        """Wait until a job is done; return its text."""
        expect(self.badge(number)).to_have_text("Done")
        return self.text(number)

    def wait_summary(self, summary: str) -> None:
        """Wait until the line above the cards says this."""
        expect(self.page.locator("#jobs-summary")).to_have_text(summary)

    def frames(self, kind: str) -> list[dict[str, Any]]:
        """Return the newest frames of a type, as the inspector shows them."""
        page = self.page
        if page.locator("#inspector").get_attribute("open") is None:
            page.click("#inspector summary")
        page.uncheck("#frames-pause")
        page.select_option("#frames-type", kind)
        found = []
        for row in page.locator(".row:visible").all():
            row.click()
            found.append(json.loads(page.locator("#frame").inner_text()))
        return found
