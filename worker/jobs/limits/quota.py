"""How much one account may use per minute: jobs, and tokens of prompt and output. Pure: the time is passed in.

Token buckets: each holds one minute's limit and fills evenly, so a burst may use all of it at once. How many tokens a
job will use is unknown when it is created: its estimate is charged then, and the rest is refunded when it ends.
"""

from __future__ import annotations

import msgspec

from worker.errors import RateLimited

MINUTE_MS = 60_000


class Rate(msgspec.Struct, frozen=True):
    """What is left of a limit per minute: `left` whole units now, and all of the limit after `full_ms` without use."""

    unit: str
    limit: int
    left: int
    full_ms: int


class Bucket:
    """Holds `per_minute` units, which come back evenly. Times are whole milliseconds that never go back.

    An amount above `per_minute` is let through when the bucket is full, and overdraws it. The level is counted in units
    of 1/60000: `per_minute` of them come back per millisecond, so all arithmetic is exact.
    """

    def __init__(self, per_minute: int, now_ms: int) -> None:
        self._per_minute = per_minute
        self._level = per_minute * MINUTE_MS
        self._at_ms = now_ms

    def wait_ms(self, amount: int, now_ms: int) -> int:
        """Return the time until `amount` may be withdrawn; 0 is now."""
        self._fill(now_ms)
        missing = min(amount, self._per_minute) * MINUTE_MS - self._level
        return max(-(-missing // self._per_minute), 0)

    def rate(self, unit: str, now_ms: int) -> Rate:
        """Return what is left in it. One that is overdrawn has nothing left."""
        self._fill(now_ms)
        return Rate(unit, self._per_minute, max(self._level // MINUTE_MS, 0), self.wait_ms(self._per_minute, now_ms))

    def withdraw(self, amount: int, now_ms: int) -> None:
        """Withdraw `amount`, below zero if need be; a negative amount is a refund."""
        self._fill(now_ms)
        self._level -= amount * MINUTE_MS

    def resize(self, per_minute: int, now_ms: int) -> None:
        """Change its size. What was withdrawn stays withdrawn."""
        self._fill(now_ms)
        self._level += (per_minute - self._per_minute) * MINUTE_MS
        self._per_minute = per_minute

    def _fill(self, now_ms: int) -> None:
        passed_ms, self._at_ms = now_ms - self._at_ms, now_ms
        self._level = min(self._level + passed_ms * self._per_minute, self._per_minute * MINUTE_MS)


class Quotas:
    """The buckets of all accounts: at most one per key and unit. A limit of 0 is none."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def charge(self, account: str, limits: dict[str, int], amounts: dict[str, int], now_ms: float) -> None:
        """Charge an account an amount of each unit that has a limit per minute.

        Raises RateLimited, with the exact time to wait, if one of the limits forbids it: then nothing is charged.
        """
        at_ms = int(now_ms)
        buckets = self._limited(account, limits, at_ms)
        for unit, bucket in buckets.items():
            # What needs nothing of a unit does not wait for one that is overdrawn.
            wait_ms = bucket.wait_ms(amounts[unit], at_ms) if amounts[unit] else 0
            if wait_ms:
                raise RateLimited(
                    f"The limit is {limits[unit]} {unit} per minute, and this job exceeds it. Try again later.",
                    retry_after_ms=wait_ms,
                )
        for unit, bucket in buckets.items():
            bucket.withdraw(amounts[unit], at_ms)

    def settle(self, account: str, unit: str, amount: int, now_ms: float) -> None:
        """Charge `amount` more, or refund it if it is negative: the estimate was wrong by that."""
        bucket = self._buckets.get((account, unit))
        if bucket is not None:
            bucket.withdraw(amount, int(now_ms))

    def rates(self, account: str, limits: dict[str, int], now_ms: float) -> tuple[Rate, ...]:
        """Return what an account has left of each limit per minute."""
        buckets = self._limited(account, limits, int(now_ms))
        return tuple(bucket.rate(unit, int(now_ms)) for unit, bucket in buckets.items())

    def _limited(self, account: str, limits: dict[str, int], now_ms: int) -> dict[str, Bucket]:
        return {unit: self._bucket(account, unit, limit, now_ms) for unit, limit in limits.items() if limit}

    def _bucket(self, account: str, unit: str, per_minute: int, now_ms: int) -> Bucket:
        bucket = self._buckets.setdefault((account, unit), Bucket(per_minute, now_ms))
        bucket.resize(per_minute, now_ms)
        return bucket
