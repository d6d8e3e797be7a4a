"""What a person does in the playground, in a real browser against a real worker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.playground import Playground
from tests.e2e.client import count_prompt, expected_count
from tests.support.server import Server

Visit = Callable[..., Playground]
COUNT = {"temperature": 0, "max_tokens": 1500}
JSON = {"Accept": "application/json"}


# ---- one job ---------------------------------------------------------------------------------------------------------


def test_a_job_runs_and_tells_what_happens(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run(count_prompt(1, 60), **COUNT)
    assert at.wait_done() == expected_count(1, 60)
    story = " ".join(at.narration())
    for sentence in ("Reading a prompt", "First token after", "Done: "):
        assert sentence in story
    expect(at.card().locator(".numbers")).to_contain_text("tokens")
    expect(at.card().locator(".spark polyline")).to_have_attribute("points", re.compile(r"\d"))
    expect(at.page.locator("#link-text")).to_have_text("connected by WebSocket")
    expect(at.page.locator("#model")).to_contain_text("jobwire-demo")


def test_the_sentence_about_the_first_token_does_not_tear_the_text(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run(count_prompt(1, 20), **COUNT)
    at.wait_done()
    assert at.card().locator(".text").count() == 1


def test_choices_stand_apart(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run(count_prompt(3, 9), n=3, **COUNT)
    at.wait_done()
    texts = [choice.locator(".text").inner_text() for choice in at.card().locator(".choice").all()]
    assert texts == [expected_count(3, 9)] * 3


def test_text_is_text_and_never_markup(visit: Visit, worker_url: str) -> None:
    """What comes back is shown as it is: the model repeats what looks like an image with a script."""
    at = visit(worker_url)
    at.run("Repeat after me: <img src=x onerror=alert(1)>", temperature=0)
    at.wait_done()
    assert at.card().locator("img").count() == 0
    assert "<img" in at.card().locator("h3").inner_text()


def test_a_wrong_setting_is_named_at_its_field(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run("Hi", temperature=99)
    expect(at.page.locator("#complaint")).to_contain_text("temperature")
    expect(at.page.locator("[name=temperature]")).to_have_attribute("aria-invalid", "true")
    expect(at.badge()).to_have_text("Failed")
    at.run("   ", temperature=1)
    expect(at.page.locator("#complaint")).to_have_text("Write a prompt first.")
    expect(at.page.locator("#prompt")).to_be_focused()
    assert at.page.locator("article").count() == 1


def test_everything_can_be_done_by_keyboard(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    keys = at.page.keyboard
    keys.press("Tab")
    expect(at.page.get_by_role("link", name="Skip to the prompt")).to_be_focused()
    keys.press("Enter")
    expect(at.page.locator("#prompt")).to_be_focused()
    keys.press("Control+A")
    keys.type(count_prompt(5, 15))
    keys.press("Control+Enter")
    assert at.wait_done() == expected_count(5, 15)
    at.card().locator(".log").focus()
    for name in ("Open another reader of job 1", "Share job 1", "Code for job 1", "Dismiss"):
        keys.press("Tab")
        expect(at.card().get_by_role("button", name=name)).to_be_focused()
    keys.press("Enter")
    expect(at.card()).to_have_count(0)
    expect(at.page.locator("#prompt")).to_be_focused()


def test_changes_of_state_are_announced_and_tokens_are_not(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run(count_prompt(1, 30), **COUNT)
    expect(at.page.locator("#announcer")).to_contain_text("Job 1: Done")
    assert at.card().locator("[role=log]").get_attribute("aria-live") == "off"
    at.run_many(6, count_prompt(1, 9), **COUNT)
    at.wait_summary("7 done")
    expect(at.page.locator("#announcer")).to_have_text("7 done")


def test_a_job_that_fails_says_why_and_where_it_ended(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run("fox " * 4000)
    expect(at.badge()).to_have_text("Failed")
    expect(at.card().locator(".note.error")).to_contain_text("The prompt has")
    (end,) = at.frames("end")
    expect(at.card().locator(".note.error .cursor")).to_have_attribute("data-at", end["cursor"].split("-")[1])


def test_a_deadline_that_passes_is_told_as_such(visit: Visit, server: Server) -> None:
    with server.frozen_engine():
        answer = server.post("/v1/jobs", {"prompt": "Hi", "deadline_ms": 50, "detach": True}, headers=JSON).json()
        at = visit(f"{server.url}/#watch={answer['sse_url']}")
        expect(at.page.locator(".badge")).to_have_text("Expired")
    expect(at.page.locator(".note.error")).to_contain_text("deadline")


# ---- what can be done to a job ---------------------------------------------------------------------------------------


def test_a_job_is_cancelled(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    with server.frozen_engine():
        at.run(count_prompt(1, 60), **COUNT)
        expect(at.badge()).to_contain_text("Queued")
        at.press("Cancel")
        expect(at.badge()).to_have_text("Cancelled")
    at.press("Dismiss")
    expect(at.card()).to_have_count(0)


def test_all_jobs_are_cancelled_and_cleared(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    with server.frozen_engine():
        at.run_many(5, count_prompt(1, 60), **COUNT)
        at.wait_summary("5 waiting")
        at.page.click("#cancel-all")
        at.wait_summary("5 cancelled")
    expect(at.page.locator(".empty")).to_have_count(0)
    at.page.click("#clear")
    expect(at.page.locator("article")).to_have_count(0)
    expect(at.page.locator(".empty")).to_be_visible()


def test_the_priority_goes_up_and_down(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    with server.frozen_engine():
        at.run(count_prompt(1, 20), **COUNT)
        expect(at.badge()).to_contain_text("Queued")
        value = at.card().locator(".priority-value")
        for name, priority in (("Raise", "6"), ("Raise", "7"), ("Lower", "6")):
            at.press(name)
            expect(value).to_have_text(priority)
        job_id = at.frames("create")[0]["job_id"]
        (job,) = [job for job in server.get("/v1/jobs").json()["jobs"] if job["job_id"] == job_id]
        assert job["priority"] == 6
        assert [frame["priority"] for frame in at.frames("update")] == [6, 7, 6]
    at.wait_done()
    expect(at.card().get_by_role("button", name="Raise")).to_be_disabled()


# ---- cuts and other readers ------------------------------------------------------------------------------------------


def test_a_cut_costs_no_token(visit: Visit, server: Server) -> None:
    """The engine is held in the middle of the texts, so that the cut is certain to be there."""
    at = visit(server.url)
    at.run_many(4, count_prompt(1, 250), **COUNT)
    expect(at.card(1).locator(".log")).to_contain_text("7 8 9")
    with server.frozen_engine():
        at.page.click("#cut")
        expect(at.card(1).locator(".note.cut")).to_contain_text("Resumed after")
    at.wait_summary("4 done")
    for number in range(1, 5):
        assert at.text(number) == expected_count(1, 250)
    expect(at.page.locator("#link-text")).to_have_text("connected by WebSocket")


def test_two_tabs_on_one_job(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    with server.frozen_engine():
        at.run(count_prompt(1, 90), **COUNT)
        expect(at.badge()).to_contain_text("Queued")
        at.press("Share")
        link = at.page.locator("#share-link").input_value()
        assert at.page.locator("#share-open").get_attribute("href") == link
        expect(at.page.locator("#share")).to_contain_text("for 5 min after its end")
        at.page.get_by_role("button", name="Close").click()
        other = at.context.new_page()
        with other.expect_request(lambda request: request.url.endswith("/stream")):
            other.goto(link)
        expect(other.locator(".badge")).to_contain_text("Queued")
    expect(other.locator(".badge")).to_have_text("Done")
    assert at.wait_done() == expected_count(1, 90)
    assert "".join(other.locator(".text").all_text_contents()) == expected_count(1, 90)
    # It can be read, and no more.
    assert other.locator("article button").count() == 0
    expect(other.locator("#prompt")).to_be_hidden()
    # Who comes late reads the same.
    late = at.open(link)
    expect(late.locator(".badge")).to_have_text("Done")
    assert "".join(late.locator(".text").all_text_contents()) == expected_count(1, 90)


def test_the_cursor_of_a_reader_stands_where_it_has_read_to(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run(count_prompt(1, 20), **COUNT)
    at.wait_done()
    (end,) = at.frames("end")
    cursor = at.card().locator(".cursor")
    expect(cursor).to_have_attribute("data-at", end["cursor"].split("-")[1])
    expect(cursor).to_have_attribute("title", re.compile(end["cursor"]))


def test_a_second_reader_starts_at_the_beginning_and_is_not_cut_with_the_first(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    at.run(count_prompt(1, 250), **COUNT)
    expect(at.card().locator(".log")).to_contain_text("7 8 9")
    second = at.page.locator("article[aria-labelledby=job-1-2]")
    with server.frozen_engine():
        at.press("Open another reader of job")
        expect(second.locator(".log")).to_contain_text("7 8 9")
        at.page.click("#cut")
        expect(at.card().locator(".note.cut")).to_contain_text("Resumed after")
        expect(second.locator(".note.cut")).to_have_count(0)
        # It is a reader, and no other job.
        at.wait_summary("1 running")
    assert at.wait_done() == expected_count(1, 250)
    expect(second.locator(".badge")).to_have_text("Done")
    assert "".join(second.locator(".text").all_text_contents()) == expected_count(1, 250)
    second.get_by_role("button", name="Close").click()
    expect(second).to_have_count(0)
    expect(at.card()).to_be_focused()


def test_jobs_are_there_again_after_a_reload(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    at.run(count_prompt(1, 5), **COUNT)
    at.run(count_prompt(1, 250), **COUNT)
    expect(at.card(2).locator(".log")).to_contain_text("7 8 9")
    at.press("Dismiss", 1)
    with server.frozen_engine():
        at.page.reload()
        expect(at.card(2).locator(".log")).to_contain_text("7 8 9")
        expect(at.card(2).locator("h3")).to_contain_text(count_prompt(1, 250))
        expect(at.page.locator("article")).to_have_count(1)
    assert at.wait_done(2) == expected_count(1, 250)
    at.run(count_prompt(1, 6), **COUNT)
    assert at.wait_done(3) == expected_count(1, 6)


def test_what_the_worker_has_forgotten_is_gone_after_a_reload(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    kept = json.dumps([{"id": "job-of-long-ago-0", "number": 7, "params": {"prompt": "Hi"}}])
    at.page.evaluate("(kept) => sessionStorage.setItem('jobwire-jobs', kept)", kept)
    at.page.reload()
    at.run(count_prompt(1, 6), **COUNT)
    assert at.wait_done(8) == expected_count(1, 6)
    expect(at.page.locator("article")).to_have_count(1)


@pytest.mark.parametrize("link", ["https://elsewhere.example/v1/jobs/0123456789abcdef/stream", "%", "/docs"])
def test_a_link_that_leads_elsewhere_is_not_followed(visit: Visit, worker_url: str, link: str) -> None:
    at = visit(f"{worker_url}/#watch={link}")
    expect(at.page.locator("#prompt")).to_be_visible()


# ---- chat ------------------------------------------------------------------------------------------------------------


def test_a_chat_sends_what_was_said(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.page.get_by_label("Chat").check()
    at.run(count_prompt(1, 5), **COUNT)
    at.wait_done(1)
    answers = at.page.locator("#history .assistant p")
    expect(answers).to_have_text(expected_count(1, 5))
    at.run(count_prompt(6, 12), **COUNT)
    at.wait_done(2)
    expect(answers).to_have_text([expected_count(1, 5), expected_count(6, 12)])
    last = at.frames("create")[-1]["messages"]
    assert [(message["role"], message["content"]) for message in last] == [
        ("user", count_prompt(1, 5)),
        ("assistant", expected_count(1, 5)),
        ("user", count_prompt(6, 12)),
    ]
    at.page.get_by_role("button", name="New chat").click()
    expect(at.page.locator("#history li")).to_have_count(0)


# ---- the batch and the frames ----------------------------------------------------------------------------------------


def test_the_batch_shows_who_shares_the_engine(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    expect(at.page.locator("#slots i")).to_have_count(64)
    at.run_many(4, count_prompt(1, 250), **COUNT)
    expect(at.card(4).locator(".log")).to_contain_text("7 8 9")
    with server.frozen_engine():
        expect(at.page.locator("#slots .mine")).to_have_count(4)
        expect(at.page.locator("#jobs-summary")).to_have_text("4 running")
        expect(at.page.locator("#engine-summary")).to_contain_text("4 of 64 slots busy")
        expect(at.page.locator("#kv-text")).to_have_text(re.compile(r"^[1-9][\d,]* of [\d,]+ tokens, [\d.]+ %$"))
        expect(at.page.locator("#facts")).to_have_text(re.compile(r"Step[\d.]+ ms"))
    at.page.click("#cancel-all")
    expect(at.page.locator("#slots .mine")).to_have_count(0)


def test_those_who_wait_stand_in_the_queue(visit: Visit, server: Server) -> None:
    at = visit(server.url)
    with server.frozen_engine():
        at.run_many(6, count_prompt(1, 9), **COUNT)
        expect(at.page.locator("#queue .mine")).to_have_count(6)
        expect(at.page.locator("#queue-text")).to_have_text("6 waiting")
    at.wait_summary("6 done")


def test_frames_can_be_read_whole(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url)
    at.run(count_prompt(1, 30), **COUNT)
    at.run(count_prompt(1, 10), **COUNT)
    at.wait_summary("2 done")
    assert [frame["prompt"] for frame in at.frames("create")] == [count_prompt(1, 30), count_prompt(1, 10)]
    tokens = at.frames("token")
    first = tokens[0]["job_id"]
    assert "".join(f["text"] for f in tokens if f["job_id"] == first) == expected_count(1, 30)
    # Reading one holds the list still; by keyboard one goes on from it.
    page = at.page
    page.select_option("#frames-job", label="#2")
    page.select_option("#frames-type", "end")
    expect(page.locator("#frames-pause")).to_be_checked()
    page.locator("#frames").focus()
    page.keyboard.press("End")
    expect(page.locator("#frame")).to_contain_text("completed")
    assert json.loads(page.locator("#frame").inner_text())["type"] == "end"
    page.click("#frames-clear")
    expect(page.locator(".row:visible")).to_have_count(0)
