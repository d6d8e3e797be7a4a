"""The request for a token that stands for a key for a limited time, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, get_type_hints

import msgspec
from msgspec import Meta

from worker.config import Settings
from worker.operations.fields import WrongFields, compiled, integers

TTL_S = 600
"""How long a token is valid by default."""


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/tokens. All fields are optional."""

    ttl_s: Annotated[int, Meta(ge=1, description="How long the token is valid, in seconds.")] | None = None
    user: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_.@-]{0,64}$(?!\n)",
            description="The user it acts for. Each user sees only their own jobs; the key's limits cover all users "
            "together.",
        ),
    ] = ""
    cookie: Annotated[bool, Meta(description="Set it as a cookie too, for pages of the worker's own origin.")] = False


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/tokens."""

    token: Annotated[str, Meta(description="Use it anywhere an API key is accepted.")]
    expires_in_s: Annotated[int, Meta(description="How long it is valid, in seconds.")]
    principal: Annotated[str, Meta(description="Whose jobs its holder creates and sees: the key, or key/user.")]


USER_ALLOWED = "Expected at most 64 letters, digits, `_`, `.`, `@` or `-`"

_KINDS = compiled(get_type_hints(TokenRequest, include_extras=True))


def parse(body: Mapping[str, object], settings: Settings) -> tuple[TokenRequest, int]:
    """Return the request in a body, and for how many seconds the token is to be valid. Raises InvalidParams."""
    wrong, ttl_allowed = WrongFields(), integers(1, settings.token_ttl_max_s)
    asked = TokenRequest(**wrong.convert(body, _KINDS, {"user": USER_ALLOWED, "ttl_s": ttl_allowed}))
    ttl_s = min(TTL_S, settings.token_ttl_max_s) if asked.ttl_s is None else asked.ttl_s
    if ttl_s > settings.token_ttl_max_s:
        wrong.add("/ttl_s", ttl_allowed)
    wrong.refuse()
    return asked, ttl_s
