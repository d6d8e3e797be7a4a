"""Who owns jobs: a principal, what it may use, and for how long a connection may speak for it."""

from __future__ import annotations

import msgspec


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """What the jobs of one key may take together. 0 is no limit of its own: the worker's settings hold.

    `weight` is the share of the engine, relative to others, when there is not enough for all.
    """

    weight: float = 1.0
    jobs_max: int = 0
    jobs_per_minute_max: int = 0
    tokens_per_minute_max: int = 0


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of jobs. `key` names the key that it came with; several principals may share one, and its allowance."""

    name: str
    key: str = ""
    admin: bool = False
    allowance: Allowance = Allowance()

    @property
    def account(self) -> str:
        """On whose account it lives: what is shared by all that came with the same key."""
        return self.key or self.name


LOCAL = Principal(name="local")
"""Whoever calls a worker that has no keys."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A principal that has shown who it is, until `expires_at_ms` (monotonic; None: for ever).

    `proof` is the digest of the key that it rests on, as of `revision` of the keys. `derived`: shown by a token that
    was made with the key, not by the key itself.
    """

    principal: Principal
    expires_at_ms: float | None = None
    proof: bytes = b""
    revision: int = 0
    derived: bool = False
