"""Signed texts that the worker issues and recognises without storing them. Pure.

An access token stands for a key for a while, a ticket for the right to read one job. Both are `<payload>.<mac>` in
base64url. The secret lives as long as the process: so do the jobs, and a token must soon be renewed anyway.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class AccessToken(msgspec.Struct, frozen=True, array_like=True):
    """Stands for `key` until `expires_at_ms` (monotonic), on behalf of `user` unless that is empty."""

    key: str
    user: str
    expires_at_ms: int


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """Lets its bearer read a job of `owner_name`, who came with `key`, in the log of this `epoch`."""

    owner_name: str
    key: str
    epoch: str


class Signer:
    """Signs and verifies with one secret. `bound` are facts that a text is tied to without containing them."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, value: msgspec.Struct, *bound: bytes) -> str:
        """Return `value` as a signed text."""
        payload = _text(msgspec.json.encode(value))
        return f"{payload}.{self._mac(type(value), payload, bound)}"

    def read(self, text: str, kind: type[T]) -> T | None:
        """Return the value in a text, unverified; None if the text is malformed."""
        payload = text.partition(".")[0]
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=kind)
        except (binascii.Error, ValueError):
            return None

    def verifies(self, text: str, kind: type[msgspec.Struct], *bound: bytes) -> bool:
        """Return whether exactly this text was made by `sign` for a value of `kind`."""
        payload, _, mac = text.partition(".")
        return hmac.compare_digest(_encode(mac), _encode(self._mac(kind, payload, bound)))

    def _mac(self, kind: type[msgspec.Struct], payload: str, bound: tuple[bytes, ...]) -> str:
        parts = (kind.__name__.encode(), _encode(payload), *bound)
        # Each with its length, so that no other parts make the same message.
        return _text(hmac.digest(self._secret, b"".join(len(part).to_bytes(4) + part for part in parts), "sha256"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encode(text: str) -> bytes:
    """Return any text as bytes: a client may have sent half a surrogate pair."""
    return text.encode(errors="surrogatepass")
