"""What the page is like: readable by everyone, on any screen, and calm under load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.playground import Playground
from tests.e2e.client import count_prompt, expected_count
from tests.support.server import Server, serving

Visit = Callable[..., Playground]
COUNT = {"temperature": 0, "max_tokens": 1500}
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}

WATCH_PAINTS = """
window.paints = {shift: 0, longTasks: [], gaps: []};
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.paints.shift += entry.value;
}).observe({type: "layout-shift", buffered: true});
new PerformanceObserver((list) => {
  for (const {duration} of list.getEntries()) window.paints.longTasks.push(duration);
}).observe({type: "longtask", buffered: true});
let last = performance.now();
(function frame(now) { window.paints.gaps.push(now - last); last = now; requestAnimationFrame(frame); })(last);
"""


WATCH_POLLS = """() => {
  const ask = window.fetch;
  window.polls = {begun: 0, open: 0, most: 0};
  window.fetch = (...request) => {
    polls.begun += 1;
    polls.most = Math.max(polls.most, ++polls.open);
    return ask(...request).finally(() => (polls.open -= 1));
  };
  for (let i = 0; i < 10; i++) document.dispatchEvent(new Event("visibilitychange"));
}"""


def luminance(page: Page) -> float:
    """How bright the page's paper is: 0 to 1."""
    script = """() => {
      const canvas = new OffscreenCanvas(1, 1).getContext("2d");
      canvas.fillStyle = getComputedStyle(document.documentElement).backgroundColor;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
      return (r + g + b) / 765;
    }"""
    return float(page.evaluate(script))


def overflow_px(page: Page) -> int:
    """By how much the page is wider than the screen."""
    return int(page.evaluate("() => document.documentElement.scrollWidth - innerWidth"))


# ---- calm ------------------------------------------------------------------------------------------------------------


def test_fifty_jobs_at_once_are_whole_and_nothing_jumps(
    visit: Visit, worker_url: str, record_property: Callable[[str, object], None]
) -> None:
    at = visit(f"{worker_url}/health")
    at.page.add_init_script(WATCH_PAINTS)
    at.page.goto(worker_url)
    at.run_many(50, count_prompt(1, 60), **COUNT)
    at.wait_summary("50 done")
    assert [at.text(number) for number in range(1, 51)] == [expected_count(1, 60)] * 50
    paints: dict[str, Any] = at.page.evaluate("() => paints")
    # Once the page stands, what comes in moves nothing. Below 0.1 counts as good.
    assert paints["shift"] < 0.02
    gaps, long = sorted(paints["gaps"]), paints["longTasks"]
    figures = {
        "paints": len(gaps),
        "gap_p50_ms": round(gaps[len(gaps) // 2], 1),
        "gap_p99_ms": round(gaps[len(gaps) * 99 // 100], 1),
        "long_tasks": len(long),
        "longest_task_ms": round(max(long, default=0)),
        "layout_shift": round(paints["shift"], 4),
    }
    print("50 jobs at once:", figures)
    record_property("fifty_jobs", figures)


def test_old_cards_make_room(visit: Visit, server: Server) -> None:
    """What has ended is shown as long as there is room: the oldest go first."""
    at = visit(server.url)
    with server.frozen_engine():
        for done in (200, 300):
            at.run_many(200, "Hi", max_tokens=1)
            at.page.click("#cancel-all")
            at.wait_summary(f"{done} cancelled")
    expect(at.page.locator("article")).to_have_count(300)
    expect(at.card(100)).to_have_count(0)
    expect(at.card(101)).to_have_count(1)


def test_the_batch_is_asked_for_by_one_loop_however_often_the_page_is_looked_at(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    expect(at.page.locator("#slots i").first).to_be_attached()
    at.page.evaluate(WATCH_POLLS)
    at.page.wait_for_function("() => polls.begun >= 4")
    assert at.page.evaluate("() => polls.most") == 1


def test_a_model_that_cannot_be_loaded_is_told_with_the_reason(visit: Visit, tmp_path: Path) -> None:
    with serving("--model", str(tmp_path / "none.gguf"), ready=False) as server:
        at = visit(server.url)
        expect(at.page.locator("#model")).to_contain_text("none.gguf")
        expect(at.page.locator("#engine-summary")).to_have_text("the model cannot be loaded; trying again")
        at.run("Hi")
        expect(at.page.locator("#complaint")).to_contain_text("none.gguf")
        # Looking at /health is how it is known.
        at.complaints = [line for line in at.complaints if "503" not in line]


# ---- for everyone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_anybody_out(visit: Visit, worker_url: str, scheme: str) -> None:
    """axe-core finds nothing, in any state of the page."""
    axe = Axe()
    # The policy of the page would not let axe in.
    at = visit(worker_url, color_scheme=scheme, bypass_csp=True)

    def check(what: str, page: Page) -> None:
        found = axe.run(page)
        assert found.violations_count == 0, f"{what}: {found.generate_report()}"

    expect(at.page.locator("#slots i").first).to_be_attached()
    check("idle", at.page)
    at.run_many(3, count_prompt(1, 30), n=2, **COUNT)
    at.wait_summary("3 done")
    at.press("Open another reader of job", 3)
    at.run("Hi", temperature=99)
    expect(at.badge(4)).to_have_text("Failed")
    at.page.get_by_label("Chat").check()
    at.frames("end")
    check("with jobs, a second reader, a refusal, a chat and frames", at.page)
    at.press("Share")
    link = at.page.locator("#share-link").input_value()
    check("sharing", at.page)
    watching = at.open(link)
    expect(watching.locator(".badge")).to_have_text("Done")
    check("watching", watching)


def test_dark_and_light_follow_the_system(visit: Visit, worker_url: str) -> None:
    assert luminance(visit(worker_url, color_scheme="light").page) > 0.9
    assert luminance(visit(worker_url, color_scheme="dark").page) < 0.2


def test_it_fits_a_phone(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url, **PHONE)
    assert overflow_px(at.page) <= 0
    at.fill(count_prompt(1, 120), **COUNT)
    at.page.tap("button[type=submit]")
    assert at.wait_done() == expected_count(1, 120)
    at.frames("end")
    assert overflow_px(at.page) <= 0
    # What is pressed with a finger is large enough.
    for button in at.page.locator("#compose button:visible, .tools button:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 24
    at.press("Share")
    assert overflow_px(at.page) <= 0
    watching = at.open(at.page.locator("#share-link").input_value())
    expect(watching.locator(".badge")).to_have_text("Done")
    assert overflow_px(watching) <= 0


def test_on_a_phone_the_answer_is_right_below_the_form(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url, **PHONE)
    at.fill(count_prompt(1, 5), **COUNT)
    at.page.tap("button[type=submit]")
    at.wait_done()
    card, batch = at.card().bounding_box(), at.page.locator(".engine").bounding_box()
    assert card is not None
    assert batch is not None
    assert card["y"] < batch["y"]


def test_a_long_prompt_leaves_state_and_buttons_in_sight(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run("unbroken" * 40, max_tokens=1)
    expect(at.badge()).to_contain_text("Done")
    card = at.card().bounding_box()
    assert card is not None
    for part in (at.badge(), at.card().get_by_role("button", name="Dismiss")):
        box = part.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= card["x"] + card["width"]


def test_text_runs_in_its_own_direction(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.fill("اكتب قصة عن ثعلب")
    assert at.page.locator("#prompt").evaluate("(field) => getComputedStyle(field).direction") == "rtl"
    at.fill("Tell me a story about a fox")
    assert at.page.locator("#prompt").evaluate("(field) => getComputedStyle(field).direction") == "ltr"


def test_without_scripts_it_says_so_and_shows_no_dead_form(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url, java_script_enabled=False)
    expect(at.page.locator(".notice")).to_contain_text("needs JavaScript")
    expect(at.page.locator("#prompt")).to_be_hidden()


def test_free_slots_are_seen_in_forced_colors(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url, forced_colors="active")
    border = at.page.locator("#slots i").first.evaluate("(cell) => getComputedStyle(cell).borderTopStyle")
    assert border == "solid"


def test_a_text_stays_where_its_reader_has_scrolled_to(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    at.run_many(4, count_prompt(1, 250), **COUNT)
    log = at.card(4).locator(".log")
    expect(log).to_contain_text("160 161 162")
    with server.frozen_engine():
        at_end = "(log) => Math.abs(log.scrollTop) < 2"
        assert log.evaluate(at_end)
        log.hover()
        at.page.mouse.wheel(0, -100)
        expect(log).not_to_have_js_property("scrollTop", 0)
        before = at.page.evaluate("() => scrollY")
    at.wait_summary("4 done")
    assert not log.evaluate(at_end)
    assert at.page.evaluate("() => scrollY") == before
