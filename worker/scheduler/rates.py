"""What the engine achieves: exponential means over its last busy seconds. Pure: durations are passed in."""

from __future__ import annotations

import math

WINDOW_S = 5.0
"""Busy seconds after which a measurement counts 1/e of its first weight."""

GAP_WINDOW_S = 1.0
"""The longest gap between steps is that of the last one to two seconds."""

FINISHED_WORKS = 16
"""The lengths of outputs are averaged over about this many finished works."""


class Mean:
    """A ratio of two sums whose terms fade with time: e-fold per `WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._above = 0.0
        self._below = 0.0

    def add(self, above: float, below: float, seconds: float) -> None:
        """Let `seconds` pass, then add one term to each sum."""
        fade = math.exp(-seconds / WINDOW_S)
        self._above = self._above * fade + above
        self._below = self._below * fade + below

    @property
    def value(self) -> float:
        """The ratio, 0 while nothing was added."""
        return self._above / self._below if self._below > 0 else 0.0


class Longest:
    """The longest of the durations that were added within the last seconds: one window's worth, at most two."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._begun_s = 0.0
        self._seconds = self._before = 0.0

    def add(self, seconds: float, now_s: float) -> None:
        """Add a duration that ended now."""
        age_s = now_s - self._begun_s
        if age_s >= self._window_s:
            self._before = self._seconds if age_s < 2 * self._window_s else 0.0
            self._seconds, self._begun_s = 0.0, now_s
        self._seconds = max(self._seconds, seconds)

    @property
    def value(self) -> float:
        """The longest, 0 while nothing was added."""
        return max(self._seconds, self._before)


class Rates:
    """Speeds of an engine. Only time spent in its steps counts, so an idle hour changes nothing."""

    def __init__(self) -> None:
        self._step_s = Mean()
        self._decode = Mean()
        self._prefill = Mean()
        self._gap_s = Longest(GAP_WINDOW_S)
        self._last_step_s: float | None = None
        self._output_tokens: float | None = None

    def step(self, seconds: float, decoded: int, prefilled: int) -> None:
        """Record one engine step: its duration and the tokens that it decoded and prefilled."""
        self._step_s.add(seconds, 1, seconds)
        self._decode.add(decoded, seconds, seconds)
        if prefilled:
            self._prefill.add(prefilled, seconds, seconds)

    def begun(self) -> None:
        """Record that works run again after none did: the time until now was no gap."""
        self._last_step_s = None

    def stepped(self, now_s: float) -> None:
        """Record that a step has ended."""
        if self._last_step_s is not None:
            self._gap_s.add(now_s - self._last_step_s, now_s)
        self._last_step_s = now_s

    def finished(self, output_tokens: int) -> None:
        """Record how much a work had produced when it left its slot."""
        mean = self._output_tokens
        self._output_tokens = output_tokens if mean is None else mean + (output_tokens - mean) / FINISHED_WORKS

    @property
    def step_ms(self) -> float:
        """Mean duration of a step."""
        return self._step_s.value * 1000

    @property
    def step_gap_ms(self) -> float:
        """Longest time from the end of a step to the end of the next one, lately, while works ran."""
        return self._gap_s.value * 1000

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens produced per busy second, over all sequences; prefill slows it down like everything else."""
        return self._decode.value

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed per second of the steps that computed any."""
        return self._prefill.value

    def output_tokens(self, tokens_max: int) -> float:
        """Return how many tokens a work that may produce `tokens_max` can be expected to produce."""
        return tokens_max if self._output_tokens is None else min(tokens_max, self._output_tokens)

    def wait_ms(self, tokens_ahead: float) -> int | None:
        """Estimate the time until a slot is free for a work behind others that will produce `tokens_ahead` tokens.

        All slots together produce the tokens, and the first slot is free after one more work's share of them. None
        before the first work has finished.
        """
        speed = self.decode_tokens_per_s
        if self._output_tokens is None or speed <= 0:
            return None
        return round(1000 * (tokens_ahead + self._output_tokens) / speed)
