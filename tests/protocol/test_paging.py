"""Which page a query asks for, and what is wrong with it."""

from __future__ import annotations

import json
import math

import pytest

from tests.jobs.scripted import Stage
from worker.errors import InvalidParams
from worker.protocol import views
from worker.protocol.paging import Page, page_of


def test_a_query_names_a_page() -> None:
    assert page_of(None, None) == Page(100, math.inf)
    assert page_of("1", "0") == Page(1, 0)
    assert page_of("1000", "1767268800000000") == Page(1000, 1767268800000000)


BAD = ["", "-1", "+1", "1.5", "1e2", "x", " 1", "1_0", "\u0661", "9" * 19, "9" * 5000]


@pytest.mark.parametrize("text", [*BAD, "0", "1001"])
def test_a_wrong_limit_is_named(text: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        page_of(text, None)
    assert [(error.pointer, error.detail) for error in refused.value.errors] == [
        ("/limit", "Expected an integer from 1 to 1000")
    ]


@pytest.mark.parametrize("text", BAD)
def test_a_wrong_place_is_named(text: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        page_of("10", text)
    assert [error.pointer for error in refused.value.errors] == ["/after"]


def test_both_are_named_together() -> None:
    with pytest.raises(InvalidParams) as refused:
        page_of("x", "y")
    assert [error.pointer for error in refused.value.errors] == ["/limit", "/after"]


def test_pages_show_each_job_once_and_the_last_has_no_next() -> None:
    stage = Stage()
    made = [stage.create().id for _ in range(7)]
    seen, after = list[str](), None
    for size in (3, 3, 1):
        page = page_of("3", after)
        body = json.loads(views.job_list(stage.jobs.list("ann", page.before, page.limit + 1), page))
        assert len(body["jobs"]) == size
        seen += [job["job_id"] for job in body["jobs"]]
        after = body.get("next")
        # What comes meanwhile is newer than all pages that follow.
        stage.create()
    assert (seen, after) == (made[::-1], None)
