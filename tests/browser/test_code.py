"""The code that the playground shows is run as it stands there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.playground import Playground
from tests.e2e.client import count_prompt, expected_count
from tests.support.node import node

Visit = Callable[..., Playground]
CLIENTS = Path(__file__).parents[2] / "clients"
COUNT = {"temperature": 0, "max_tokens": 1500}
TIMEOUT_S = 60.0


def code(at: Playground, language: str) -> str:
    """The code in a language."""
    at.page.get_by_role("tab", name=language).click()
    expect(at.page.get_by_role("tab", name=language)).to_have_attribute("aria-selected", "true")
    return at.page.locator("#code").inner_text()


def execute(command: list[str], folder: Path) -> str:
    """Run a program; return what it prints."""
    env = os.environ | {"PYTHONPATH": str(CLIENTS / "python")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def run_javascript(text: str, folder: Path) -> str:
    """Do what the comment on top says, then run the rest."""
    assert text.startswith("// npm install ./clients/javascript\n")
    (folder / "node_modules").mkdir(exist_ok=True)
    shutil.copytree(CLIENTS / "javascript", folder / "node_modules/jobwire", dirs_exist_ok=True)
    (folder / "program.mjs").write_text(text, encoding="utf-8")
    return node("program.mjs", cwd=folder)


def test_the_javascript_runs(visit: Visit, worker_url: str, tmp_path: Path) -> None:
    at = visit(worker_url)
    at.run(count_prompt(1, 20), **COUNT)
    at.wait_done()
    assert run_javascript(code(at, "JavaScript"), tmp_path) == expected_count(1, 20)
    at.run_many(3, count_prompt(2, 8), seed=7, priority=6, **COUNT)
    at.wait_summary("4 done")
    assert run_javascript(code(at, "JavaScript"), tmp_path).splitlines() == [expected_count(2, 8)] * 3


def test_the_python_runs(visit: Visit, worker_url: str, tmp_path: Path) -> None:
    at = visit(worker_url)
    at.run(count_prompt(1, 20), **COUNT)
    at.wait_done()
    assert execute([sys.executable, "-c", code(at, "Python")], tmp_path) == expected_count(1, 20)
    at.run_many(3, count_prompt(2, 8), **COUNT)
    at.wait_summary("4 done")
    assert execute([sys.executable, "-c", code(at, "Python")], tmp_path).splitlines() == [expected_count(2, 8)] * 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_runs_whatever_is_quoted(visit: Visit, worker_url: str, tmp_path: Path) -> None:
    at = visit(worker_url)
    at.run('It\'s "quoted" $HOME `date` \\ 漢字 👩‍👩‍👧', max_tokens=5)
    at.wait_summary("1 done")
    printed = execute(["bash", "-c", code(at, "curl")], tmp_path)
    assert printed.count('"type":"end"') == 1
    at.run_many(3, count_prompt(2, 8), **COUNT)
    at.wait_summary("4 done")
    printed = execute(["bash", "-c", code(at, "curl")], tmp_path)
    assert printed.count('"type":"end"') == 3


def test_a_chat_is_code_too(visit: Visit, worker_url: str, tmp_path: Path) -> None:
    at = visit(worker_url)
    at.page.get_by_label("Chat").check()
    at.run(count_prompt(1, 5), **COUNT)
    at.wait_done()
    assert execute([sys.executable, "-c", code(at, "Python")], tmp_path) == expected_count(1, 5)
    assert run_javascript(code(at, "JavaScript"), tmp_path) == expected_count(1, 5)


def test_code_of_an_earlier_job_is_shown_and_copied(visit: Visit, worker_url: str) -> None:
    at = visit(worker_url, permissions=["clipboard-read", "clipboard-write"])
    at.run(count_prompt(1, 5), **COUNT)
    at.run(count_prompt(1, 6), **COUNT)
    at.wait_summary("2 done")
    at.press("Code", 1)
    expect(at.page.locator("#code")).to_be_focused()
    shown = at.page.locator("#code").inner_text()
    assert count_prompt(1, 5) in shown
    at.page.click("#code-copy")
    expect(at.page.locator("#code-copy")).to_have_text("Copied")
    assert at.page.evaluate("() => navigator.clipboard.readText()") == shown
