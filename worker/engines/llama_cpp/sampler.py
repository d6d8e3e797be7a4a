"""llama.cpp's own sampler chain for one sequence, set up to draw what `worker.engines.output.sampling` would."""

from __future__ import annotations

from typing import Any

from worker.engines.output.sampling import REPETITION_PENALTY_MIN, mix
from worker.engines.output.sequence import Sequence

TEMPERATURE_MIN = 1e-4
"""Lower temperatures count as this one: logits divided by less overflow."""


class Sampler:
    """llama.cpp's sampler chain for one sequence, in the order of worker.engines.output.sampling.

    The chain keeps what penalties count; each token is drawn by a copy that ends in a generator seeded for it alone,
    so the draw is a function of seed and position.
    """

    def __init__(self, lib: Any, sequence: Sequence, vocab: int, context_tokens: int) -> None:
        self._sequence = sequence
        sampling = sequence.sampling
        chain = self._chain = lib.LlamaSampler()
        links = 0
        if sequence.bias:
            chain.add_logit_bias(vocab, list(sequence.bias.items()))
            links += 1
        self._penalized = False
        output = sequence.tokens[sequence.prompt_tokens :]
        # Repetition counts prompt and output, the others the output alone: two links with a memory each.
        for counted, penalties in (
            (sequence.tokens, (max(sampling.repetition_penalty, REPETITION_PENALTY_MIN), 0.0, 0.0)),
            (output, (1.0, sampling.frequency_penalty, sampling.presence_penalty)),
        ):
            if penalties != (1.0, 0.0, 0.0):
                chain.add_penalties(vocab, context_tokens, *penalties)
                link = chain.chain_get(links)
                for token in counted:
                    link.accept(token)
                links += 1
                self._penalized = True
        if sampling.temperature > 0.0:
            chain.add_temp(max(sampling.temperature, TEMPERATURE_MIN))
            if sampling.top_k > 0:
                chain.add_top_k(sampling.top_k)
            if sampling.top_p < 1.0:
                chain.add_top_p(sampling.top_p, 1)
            if sampling.min_p > 0.0:
                chain.add_min_p(sampling.min_p, 1)

    def choose(self, context: Any, output: int) -> int:
        """Choose a token from the logits at `output`. Raises ValueError when the chain leaves none."""
        chain = self._chain.clone()
        sampling = self._sequence.sampling
        if sampling.temperature > 0.0:
            # 31 bits: the largest 32-bit number would mean a seed from the clock.
            chain.add_dist(mix(sampling.seed, self._sequence.position) >> 33)
        else:
            chain.add_greedy()
        token: int = chain.sample(context, output)
        return token

    def observe(self, token: int) -> None:
        """Count a token of the output."""
        if self._penalized:
            self._chain.accept(token)
