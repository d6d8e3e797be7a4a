"""Which page of a list of jobs a query asks for."""

from __future__ import annotations

import math

import msgspec

from worker.operations.fields import WrongFields, integers

PAGE_JOBS, PAGE_JOBS_MAX = 100, 1000
"""Jobs of a page, where a client does not say, and at most."""

DIGITS_MAX = 18


class Page(msgspec.Struct, frozen=True):
    """At most `limit` jobs, of those whose number is below `before`, newest first."""

    limit: int = PAGE_JOBS
    before: float = math.inf


FIRST = Page()
"""What a query without parameters asks for."""


def page_of(limit: str | None, after: str | None) -> Page:
    """Return the page that a query asks for. Raises InvalidParams, which names what is wrong."""
    wrong = WrongFields()
    if limit is not None and not (_is_number(limit) and 1 <= int(limit) <= PAGE_JOBS_MAX):
        wrong.add("/limit", integers(1, PAGE_JOBS_MAX))
    if after is not None and not _is_number(after):
        wrong.add("/after", "Expected the `next` of another page")
    wrong.refuse()
    return Page(PAGE_JOBS if limit is None else int(limit), math.inf if after is None else int(after))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX
