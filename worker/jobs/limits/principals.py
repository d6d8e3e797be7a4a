"""Owners of jobs: principals, their allowances, and the grants by which connections act for them."""

from __future__ import annotations

import msgspec


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of all jobs of one key together. 0 is no limit of its own: the worker's settings hold.

    `weight` is its share of the engine, relative to other keys, when there is not enough for all. `priority_max` is the
    highest priority that its jobs get, `queue_share` the part of the queue that they may hold.
    """

    weight: float = 1.0
    jobs_max: int = 0
    jobs_per_minute_max: int = 0
    tokens_per_minute_max: int = 0
    priority_max: int = 9
    queue_share: float = 1.0


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of jobs. `key` names its API key; several principals may share one, and its allowance."""

    name: str
    key: str = ""
    admin: bool = False
    allowance: Allowance = Allowance()

    @property
    def account(self) -> str:
        """The account that its use is charged to: one for all principals of the same key."""
        return self.key or self.name


LOCAL = Principal(name="local", admin=True)
"""The owner of all jobs of a worker that has no keys: whoever can reach it may do everything."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated principal, until `expires_at_ms` (monotonic; None: for ever).

    `proof` is the digest of the key behind it, as of `revision` of the keys. `derived`: authenticated by a token that
    was made with the key, not by the key itself.
    """

    principal: Principal
    expires_at_ms: float | None = None
    proof: bytes = b""
    revision: int = 0
    derived: bool = False
