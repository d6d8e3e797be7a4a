"""Signed texts that the worker gives out and knows again. Nothing is kept of them. Pure.

A token stands for a key for a while, a ticket for the right to read one job. Both are `<payload>.<mac>` in base64url.
The secret lives as long as the process: so do the jobs, and a token is soon to be renewed anyway.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class AccessToken(msgspec.Struct, frozen=True, array_like=True):
    """Stands for `key` until `expires_at_ms` (monotonic), on behalf of `user`, if there is one."""

    key: str
    user: str
    expires_at_ms: int


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """Lets its bearer read a job of `principal`, who came with `key`, in the log of this `epoch`."""

    principal: str
    key: str
    epoch: str


class Signer:
    """Signs and verifies with one secret. `bound` is what a text is good for and does not say itself."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, value: msgspec.Struct, *bound: bytes) -> str:
        """Return `value` as a signed text."""
        payload = _text(msgspec.json.encode(value))
        return f"{payload}.{self._mac(type(value), payload, bound)}"

    def read(self, text: str, kind: type[T]) -> T | None:
        """Return what a text says, verified or not; None if it is no such text."""
        payload = text.partition(".")[0]
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=kind)
        except (binascii.Error, ValueError):
            return None

    def verifies(self, text: str, kind: type[msgspec.Struct], *bound: bytes) -> bool:
        """Tell whether this very text was made by `sign` for a value of `kind`."""
        payload, _, mac = text.partition(".")
        return hmac.compare_digest(_encode(mac), _encode(self._mac(kind, payload, bound)))

    def _mac(self, kind: type[msgspec.Struct], payload: str, bound: tuple[bytes, ...]) -> str:
        parts = (kind.__name__.encode(), _encode(payload), *bound)
        # With the length of each, so that no other parts make the same message.
        return _text(hmac.digest(self._secret, b"".join(len(part).to_bytes(4) + part for part in parts), "sha256"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encode(text: str) -> bytes:
    """Return any text as bytes: what was sent may be half a character."""
    return text.encode(errors="surrogatepass")
