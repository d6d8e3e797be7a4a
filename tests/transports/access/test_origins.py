"""Which hosts the worker answers to, and which pages may call it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        with pytest.raises(Forbidden, match=r"hosts-allowed|no host"):
            origins.check_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "http://[", "[", "[::1", "::1", "[::1]x", "[zz]", "localhost:80:80", "localhost:65536", "localhost:-1",
        "localhost:8o", "localhost:٣", "localhost ", " localhost", "local host", "localhost/x", "user@localhost",
        "//localhost", "http://localhost", "bücher.example", "\x00", "localhost\n", "localhost\x1b[2J", "x:x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("listening", ["127.0.0.1", "0.0.0.0"])
def test_what_is_no_host_is_refused_wherever_the_worker_listens(host: str, listening: str) -> None:
    origins = Origins(Settings(host=listening, api_key="own-secret-of-16"))
    with pytest.raises(Forbidden, match="is no host") as refused:
        origins.check_host(host)
    assert len(refused.value.detail) < 1000
    assert refused.value.detail.isprintable()


@pytest.mark.parametrize("host", ["localhost:", "localhost:0", "localhost:65535", "127.0.0.1:80", "[::1]", "LocalHost"])
def test_hosts_may_have_any_port(host: str) -> None:
    Origins(Settings()).check_host(host)


@pytest.mark.parametrize(
    "origin",
    [
        "http://[", "[", "//localhost", "localhost", "http://", "http:localhost", "http://localhost:80:80", "http:///",
        "http://localhost/", "http://localhost:8080/", "http://user@localhost:8080", "http://localhost:8080 ", "\x00",
        " http://localhost:8080", "http://localhost:8080\n", "http://localhost:8080,http://localhost:8080", "é" * 9,
        "http://localhost:8080?", "http://localhost:8080#", "x" * 999, "http://" + "x" * 999, "://localhost:8080",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(Forbidden, match="origins-allowed") as refused:
        Origins(Settings()).check_origin(origin, "localhost:8080")
    assert len(refused.value.detail) < 1000
    assert refused.value.detail.isprintable()


@given(st.text(), st.text())
def test_no_text_is_more_than_refused(host: str, origin: str) -> None:
    origins = Origins(Settings())
    for check in (lambda: origins.check_host(host), lambda: origins.check_origin(origin, host)):
        with contextlib.suppress(Forbidden):
            check()


def test_pages_of_others_are_listed_or_none_is() -> None:
    assert not Origins(Settings()).any_listed
    listed = Origins(Settings(origins_allowed=("https://Page.example:443",)))
    assert listed.any_listed
    assert listed.is_listed("https://page.example")
    assert not listed.is_listed("null")
