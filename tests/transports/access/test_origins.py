"""Which hosts the worker answers to, and which pages may call it."""

from __future__ import annotations

from typing import Any

import pytest

from worker.config import Settings
from worker.errors import Forbidden
from worker.transports.access.origins import Origins


@pytest.mark.parametrize(
    ("origin", "ok"),
    [
        (None, True),
        ("http://localhost:8080", True),
        ("http://LOCALHOST:8080", True),
        ("http://localhost", False),
        ("https://page.example", True),
        ("https://page.example:443", True),
        ("HTTPS://Page.example", True),
        ("http://page.example", False),
        ("https://page.example:444", False),
        ("https://page.example.evil", False),
        ("http://127.0.0.1:3000", True),
        ("null", False),
        ("", False),
    ],
)
def test_an_origin_must_be_ours_or_listed(origin: str | None, ok: bool) -> None:
    origins = Origins(Settings(origins_allowed=("https://page.example", "http://127.0.0.1:3000")))
    if ok:
        origins.check_origin(origin, "localhost:8080")
    else:
        with pytest.raises(Forbidden):
            origins.check_origin(origin, "localhost:8080")


LISTED = {"hosts_allowed": ("gpu.example",)}


@pytest.mark.parametrize(
    ("settings", "host", "ok"),
    [
        ({}, "localhost:8080", True),
        ({}, "LOCALHOST", True),
        ({}, "[::1]:8080", True),
        ({}, "10.0.0.7", True),
        ({}, "evil.example", False),
        ({}, "", False),
        ({}, None, False),
        ({}, "[half", False),
        (LISTED, "gpu.example:443", True),
        (LISTED, "gpu.example.evil", False),
        ({"host": "0.0.0.0", "api_key": "own-secret-of-16"}, "any.example", True),
        ({"host": "0.0.0.0", "api_key": "own-secret-of-16", **LISTED}, "any.example", False),
        ({"host": "0.0.0.0", "api_key": "own-secret-of-16", **LISTED}, "gpu.example", True),
    ],
)
def test_a_host_must_be_ours_listed_or_an_address(settings: dict[str, Any], host: str | None, ok: bool) -> None:
    origins = Origins(Settings(**settings))
    if ok:
        origins.check_host(host)
    else:
        with pytest.raises(Forbidden, match="hosts-allowed"):
            origins.check_host(host)


def test_pages_of_others_are_listed_or_none_is() -> None:
    assert not Origins(Settings()).any_listed
    listed = Origins(Settings(origins_allowed=("https://Page.example:443",)))
    assert listed.any_listed
    assert listed.is_listed("https://page.example")
    assert not listed.is_listed("null")
