"""Fair sharing: virtual token counters by which accounts share an engine evenly.

After "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): every account has a counter of the tokens
that it was served, the least served goes first, and an account that comes back after a pause starts level with the
least served of those present. So an account saves up no credit by staying away, and is not punished for having used an
idle engine. An account of weight 2 counts as two: its tokens count half.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFILL_WEIGHT = 1
"""The price of a prompt token, which shares its step with many others."""

DECODE_WEIGHT = 2
"""The price of an output token, which needs a step of its own. Both weights are the paper's."""

IDLE_ACCOUNTS_MAX = 1024
"""Counters of absent accounts that are kept."""


class Ledger:
    """Counters of accounts. An account is present while at least one work of it waits or runs."""

    def __init__(self, served: Mapping[str, float] | None = None, weights: Mapping[str, float] | None = None) -> None:
        self._served = dict(served or {})
        self._weights = dict(weights or {})
        self._present: dict[str, int] = {}
        # Counters of accounts that left; the oldest are forgotten first.
        self._idle: dict[str, float] = {}
        self._last = 0.0

    def enter(self, account: str, weight: float = 1.0) -> None:
        """Count one more work of `account`, which has `weight` shares from now on."""
        self._weights[account] = weight
        count = self._present.get(account, 0)
        self._present[account] = count + 1
        if not count:
            level = min(self._served.values(), default=self._last)
            self._served[account] = max(level, self._idle.pop(account, 0))

    def leave(self, account: str) -> None:
        """Count one work of `account` less."""
        self._present[account] -= 1
        if not self._present[account]:
            del self._present[account]
            del self._weights[account]
            self._last = self._idle[account] = self._served.pop(account)
            if len(self._idle) > IDLE_ACCOUNTS_MAX:
                del self._idle[next(iter(self._idle))]

    def charge(self, account: str, prefilled: int = 0, decoded: int = 0) -> None:
        """Count tokens that were computed for a present account."""
        self._served[account] += (PREFILL_WEIGHT * prefilled + DECODE_WEIGHT * decoded) / self._weights[account]

    def served(self, account: str) -> float:
        """Return the counter of a present account, per share. It never falls while the account is present."""
        return self._served[account]

    def trial(self) -> Ledger:
        """Return a copy to try charges on, and throw away."""
        return Ledger(self._served, self._weights)
