"""Whose word about the path of a proxy counts, and what it may be."""

from __future__ import annotations

import pytest

from worker.config import Settings
from worker.errors import ConfigError
from worker.transports.access.prefixes import Prefixes

LOCAL = "127.0.0.1"


def prefix(*values: str, peer: str | None = LOCAL, name: str = "X-Forwarded-Prefix", **settings: object) -> str:
    """Return the prefix of a request with such a header."""
    headers = [(b"host", b"x"), *((name.encode(), value.encode("latin-1")) for value in values)]
    return Prefixes(Settings(**settings)).prefix_of(peer, headers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/llm", "/llm"), ("/llm/", "/llm"), (" /a/b.c_~-1 ", "/a/b.c_~-1"), ("/", ""), ("", ""), ("/v1x", "/v1x")],
)
def test_the_header_of_a_proxy(value: str, expected: str) -> None:
    assert prefix(value) == expected
    assert prefix(value, path_prefix="/own/") == (expected or "/own")


HOSTILE = (
    "//evil.example", "/llm//x", "http://evil.example", "/llm?x=1", "/llm#x", "/llm x", "/llm\r\nX-Evil: 1", "/\x1b[2J",
    "/llm%2f", "/a/../b", "/..", "/.", "llm", "/\xe9", "/<script>", "/'", "/llm\n", "/a,/b", "/" + "a" * 200, "\\evil",
    "/v1", "/v1/x", "/docs", "/health", "/llm;x", "/@evil", "/llm:80",
)  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_a_malformed_one_counts_as_none(value: str) -> None:
    assert prefix(value) == ""
    assert prefix(value, path_prefix="/own") == "/own"


def test_two_of_them_count_as_none() -> None:
    assert prefix("/a", "/a") == ""


@pytest.mark.parametrize(
    ("peer", "trusted", "used"),
    [
        (LOCAL, None, True),
        ("::1", None, True),
        ("::ffff:127.0.0.1", None, True),
        ("127.0.0.2", None, False),
        ("10.1.2.3", None, False),
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        (LOCAL, ("10.0.0.0/8",), False),
        ("fe80::1%eth0", ("fe80::/10",), True),
        (LOCAL, (), False),
        (None, None, False),
        ("<local>", None, False),
    ],
)
def test_only_trusted_proxies_are_heard(peer: str | None, trusted: tuple[str, ...] | None, used: bool) -> None:
    settings = {} if trusted is None else {"proxies_trusted": trusted}
    assert prefix("/llm", peer=peer, **settings) == ("/llm" if used else "")


def test_other_headers_of_proxies_mean_nothing() -> None:
    for name in ("X-Forwarded-Path", "X-Script-Name", "X-Original-URI", "Forwarded"):
        assert prefix("/llm", name=name) == ""


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example", "*", "10.0.0.0/33", "unix:"])
def test_a_wrong_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a list of addresses and networks"):
        Settings(proxies_trusted=(text,))
