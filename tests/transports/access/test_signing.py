"""Signed texts: only a text that was signed verifies, and only for the facts it was signed for."""

from __future__ import annotations

import string

from hypothesis import assume, given
from hypothesis import strategies as st

from worker.transports.access.signing import AccessToken, Signer, Ticket

SIGNER = Signer(b"secret")
words = st.text(max_size=20)
bounds = st.lists(st.binary(max_size=20), max_size=3)
ALPHABET = string.ascii_letters + string.digits + "-_."


@given(words, words, st.integers(0, 1 << 53), bounds)
def test_what_was_signed_is_read_and_verified(key: str, user: str, expires_at_ms: int, bound: list[bytes]) -> None:
    token = AccessToken(key, user, expires_at_ms)
    text = SIGNER.sign(token, *bound)
    assert SIGNER.read(text, AccessToken) == token
    assert SIGNER.verifies(text, AccessToken, *bound)
    assert set(text) <= set(ALPHABET)


@given(words, bounds, st.data())
def test_no_changed_text_is_verified(word: str, bound: list[bytes], data: st.DataObject) -> None:
    text = SIGNER.sign(Ticket(word, "k", "e"), *bound)
    place = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.text(ALPHABET + "=+/ \n", max_size=2))
    changed = text[:place] + put + text[place + data.draw(st.integers(0, 1)) :]
    assume(changed != text)
    assert not SIGNER.verifies(changed, Ticket, *bound)


@given(words, bounds, bounds)
def test_what_it_was_signed_for_is_part_of_it(word: str, bound: list[bytes], other: list[bytes]) -> None:
    """Also where the parts, one after the other, are the same bytes."""
    assume(bound != other)
    text = SIGNER.sign(Ticket(word, "k", "e"), *bound)
    assert not SIGNER.verifies(text, Ticket, *other)


@given(words, words)
def test_a_ticket_is_no_token_and_another_secret_another_signature(first: str, second: str) -> None:
    text = SIGNER.sign(Ticket(first, second, "7"))
    assert not SIGNER.verifies(text, AccessToken)
    assert not Signer(b"other").verifies(text, Ticket)


@given(st.text())
def test_whatever_is_sent_is_read_or_not_but_never_verified(text: str) -> None:
    assert SIGNER.read(text, AccessToken) is None or text
    assert not SIGNER.verifies(text, AccessToken)


def test_another_spelling_of_the_same_bytes_is_another_text() -> None:
    """The last character of a base64 text may hold bits that count for nothing."""
    text = SIGNER.sign(Ticket("a", "b", "c"))
    payload, _, mac = text.partition(".")
    for spelt in (f"{payload}=.{mac}", f"{payload}.{mac}=", f"{text}.", f"{payload}.{mac[:-1]}{chr(ord(mac[-1]) + 1)}"):
        assert not SIGNER.verifies(spelt, Ticket)


def test_parts_do_not_run_together() -> None:
    text = SIGNER.sign(Ticket("a", "b", "c"), b"ab", b"c")
    assert not SIGNER.verifies(text, Ticket, b"a", b"bc")
    assert not SIGNER.verifies(text, Ticket, b"abc")
