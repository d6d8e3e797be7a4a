"""How much one account may ask for per minute: jobs, and tokens of prompt and output. Pure: the time is passed in.

Token buckets: each holds what one minute allows and fills evenly, so a burst may take all of it at once. Nobody knows
before how many tokens a job will use: its estimate is taken when it is created, and what it did not use is given back.
"""

from __future__ import annotations

from worker.errors import RateLimited

MINUTE_MS = 60_000


class Bucket:
    """Holds `per_minute` units, which come back evenly. Times are whole milliseconds that never go back.

    What is larger than the bucket is let through when it is full, and overdraws it. The level is counted in units of
    1/60000: as many of them come back per millisecond as whole ones per minute, so all arithmetic is exact.
    """

    def __init__(self, per_minute: int, now_ms: int) -> None:
        self._per_minute = per_minute
        self._level = per_minute * MINUTE_MS
        self._at_ms = now_ms

    def wait_ms(self, amount: int, now_ms: int) -> int:
        """Return the time until `amount` may be taken; 0 is now."""
        self._fill(now_ms)
        missing = min(amount, self._per_minute) * MINUTE_MS - self._level
        return max(-(-missing // self._per_minute), 0)

    def take(self, amount: int, now_ms: int) -> None:
        """Take `amount`, below zero if need be; a negative one is given back."""
        self._fill(now_ms)
        self._level -= amount * MINUTE_MS

    def resize(self, per_minute: int, now_ms: int) -> None:
        """Change what it holds. What was taken stays taken."""
        self._fill(now_ms)
        self._level += (per_minute - self._per_minute) * MINUTE_MS
        self._per_minute = per_minute

    def _fill(self, now_ms: int) -> None:
        passed_ms, self._at_ms = now_ms - self._at_ms, now_ms
        self._level = min(self._level + passed_ms * self._per_minute, self._per_minute * MINUTE_MS)


class Quotas:
    """The buckets of all accounts, which are as many as there are keys. A limit of 0 is none."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def take(self, account: str, limits: dict[str, int], amounts: dict[str, int], now_ms: float) -> None:
        """Take an amount of each unit, where its limit per minute allows.

        Raises RateLimited, with the exact time to wait, if it does not: then nothing is taken.
        """
        at_ms = int(now_ms)
        buckets = {unit: self._bucket(account, unit, limit, at_ms) for unit, limit in limits.items() if limit}
        for unit, bucket in buckets.items():
            wait_ms = bucket.wait_ms(amounts[unit], at_ms)
            if wait_ms:
                raise RateLimited(
                    f"You may use {limits[unit]} {unit} per minute, and this is more. Try again later.",
                    retry_after_ms=wait_ms,
                )
        for unit, bucket in buckets.items():
            bucket.take(amounts[unit], at_ms)

    def settle(self, account: str, unit: str, amount: int, now_ms: float) -> None:
        """What was taken turned out to be so much too little, or too much where `amount` is below 0."""
        bucket = self._buckets.get((account, unit))
        if bucket is not None:
            bucket.take(amount, int(now_ms))

    def _bucket(self, account: str, unit: str, per_minute: int, now_ms: int) -> Bucket:
        bucket = self._buckets.setdefault((account, unit), Bucket(per_minute, now_ms))
        bucket.resize(per_minute, now_ms)
        return bucket
