"""One sequence in the batch, and the end of every step: choose each sequence's next token and release its text.

Engines that compute rows of logits call `advance`; those that sample by themselves call `Sequence.append`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.engines.base import Broke, Delta, Prepared
from worker.engines.output.guide import Guides
from worker.engines.output.sampling import Logits, Shaping, biases, choose, likeliest, log_softmax, uniform
from worker.engines.output.text import Piece, TextAssembler
from worker.engines.vocabulary import Vocabulary
from worker.errors import EngineFailed, InvalidParams, JobwireError
from worker.events import FinishReason, TopLogprob


class _Ranked(NamedTuple):
    """A token's log-probability, and the likeliest tokens in its place."""

    logprob: float
    top: tuple[TopLogprob, ...]


class Sequence:
    """The tokens of one generation and everything that follows from them: text, guide, penalties, its end.

    `tokens` are prompt and output so far, `prompt_tokens` is the length of the prompt, `bias` maps tokens to what is
    added to their logits. Once `finished`, the engine removes it from the batch. Raises InvalidParams like
    `Guides.guide`.
    """

    def __init__(self, prepared: Prepared, vocabulary: Vocabulary, guides: Guides) -> None:
        generation = prepared.generation
        self.lease = prepared.lease
        self.sampling = generation.sampling
        self.tokens = [*prepared.prompt_ids, *generation.generated]
        self.prompt_tokens = len(prepared.prompt_ids)
        self.finished = False
        self._tokens_max = prepared.tokens_max
        self._vocabulary = vocabulary
        self._healed = prepared.healed
        self._healing = guides.healing
        shown = b"".join(map(vocabulary.token_bytes, generation.generated)).removeprefix(self._healed)
        self._text = TextAssembler(self.sampling.stop, shown, self.sampling.banned_strings)
        self._guide = guides.guide(self.sampling.response_format, generation.generated)
        self._withheld: list[tuple[int, _Ranked | None]] = []
        # A guide knows by itself when the output is complete, and then allows an end token alone.
        banned = vocabulary.eos_ids if self.sampling.ignore_eos and self._guide is None else ()
        self.bias = biases(self.sampling, banned)
        self._shaping = self._shape()
        # Tokens that led to a banned string, by the position that they were chosen for.
        self._blocked: dict[int, set[int]] = {}

    @property
    def position(self) -> int:
        """The number of the next token among the output, from 0: with the seed it decides the random draw."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def reshapes(self) -> bool:
        """Whether `reshape` changes anything."""
        return self._shaping is not None or self.position in self._blocked

    def reshape(self, row: Logits) -> None:
        """Apply bias, penalties and bans to this sequence's row of logits (vocab,), in place."""
        if self._shaping is not None:
            self._shaping.apply(row)
        if self.position in self._blocked:
            row[list(self._blocked[self.position])] = -np.inf

    def draw(self, attempt: int = 0) -> float:
        """Return the random number in [0, 1) for the next token; `attempt` 1 is the second."""
        return uniform(self.sampling.seed, self.position, attempt)

    def accepts(self, token: int) -> bool:
        """Return whether this token may come next: if a guide accepts it, or if it heals the prompt; else always."""
        if self._heals:
            return self._vocabulary.token_bytes(token).startswith(self._healed)
        return self._guide is None or self._guide.accept(token)

    def choose_allowed(self, row: Logits) -> int:
        """Choose from one row of logits (vocab,) among the tokens that are allowed, after `accepts` refused one.

        `row` has bias and penalties in it. Raises InvalidParams when none is left: the settings contradict each other.
        """
        masked = np.where(self._allowed(), row, np.float32(-np.inf))
        if not np.isfinite(masked.max()):
            raise self._dead_end("no token of the model can continue the required format")
        token = int(choose(masked[None], [self.sampling], [self.draw(1)])[0])
        if not self.accepts(token):
            raise self._dead_end(f"token {token} was allowed and then refused")
        return token

    def append(self, token_id: int, logprobs: Logits | None = None) -> Delta | None:
        """Append the chosen token. Return what may be shown now or how the sequence ended, None if text is withheld.

        If the text completes a banned string, `tokens` becomes shorter instead: the last ones are removed again.
        `logprobs` are the model's own log-probabilities (vocab,), needed where the settings ask for them.
        """
        if token_id in self._vocabulary.eos_ids:
            return self._finish("stop" if self._guide is None else "grammar", self._text.finish())
        data = self._vocabulary.token_bytes(token_id)
        if self._heals:
            data = data.removeprefix(self._healed)
        self.tokens.append(token_id)
        self._withheld.append((token_id, None if logprobs is None else self._rank(token_id, logprobs)))
        if self._shaping is not None:
            self._shaping.observe(token_id)
        piece = self._text.push(data)
        if piece.rewound:
            self._rewind(piece.rewound)
            return None
        if piece.stop is not None:
            return self._finish("stop_string", piece)
        complete = self._guide is not None and self._guide.complete
        if complete or len(self.tokens) >= self._tokens_max:
            rest = self._text.finish()
            piece = Piece(piece.released + rest.released, piece.text + rest.text, rest.stop)
            return self._finish("grammar" if complete else "length", piece)
        return self._delta(piece) if piece.released else None

    def fail(self, error: Exception) -> Broke:
        """End the sequence because of an error in its part of a step."""
        self.finished = True
        if not isinstance(error, JobwireError):
            reason = f"{type(error).__name__}: {error}".rstrip(".")
            error = EngineFailed(f"The engine failed on this job: {reason}.")
        return Broke(self.lease, error.problem())

    @property
    def _heals(self) -> bool:
        """Whether the next token begins with the one that was removed from the prompt."""
        return bool(self._healed) and self.position == 0

    def _dead_end(self, reason: str) -> InvalidParams:
        if self._guide is None:
            return InvalidParams(f"The output came to a dead end: {reason}.")
        return self._guide.refusal(reason)

    def _allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next, shape (vocab,), when not every one may."""
        if self._heals:
            return self._healing.allowed(self._healed)
        assert self._guide is not None
        return self._guide.allowed()

    def _shape(self) -> Shaping | None:
        """Return the bias and the penalties that count the tokens so far."""
        if not Shaping.wanted(self.sampling, self.bias):
            return None
        prompt, output = self.tokens[: self.prompt_tokens], self.tokens[self.prompt_tokens :]
        return Shaping(self.sampling, self.bias, self._vocabulary.size, prompt, output)

    def _rewind(self, count: int) -> None:
        """Remove the last tokens, and never choose the first of them at this place again."""
        first = self.tokens[-count]
        del self.tokens[-count:], self._withheld[-count:]
        self._blocked = {position: tokens for position, tokens in self._blocked.items() if position <= self.position}
        self._blocked.setdefault(self.position, set()).add(first)
        self._shaping = self._shape()

    def _finish(self, reason: FinishReason, piece: Piece) -> Delta:
        self.finished = True
        return self._delta(piece, "stop_string" if piece.stop is not None else reason)

    def _delta(self, piece: Piece, finish: FinishReason | None = None) -> Delta:
        released = self._withheld[: piece.released]
        del self._withheld[: piece.released]
        ids = tuple([token for token, _ in released])
        if self.sampling.logprobs is None:
            return Delta(self.lease, ids=ids, text=piece.text, finish=finish, stop_sequence=piece.stop)
        ranks = [rank for _, rank in released if rank is not None]
        top = tuple([rank.top for rank in ranks]) if self.sampling.logprobs else None
        return Delta(
            self.lease,
            ids=ids,
            text=piece.text,
            logprobs=tuple([rank.logprob for rank in ranks]),
            top_logprobs=top,
            finish=finish,
            stop_sequence=piece.stop,
        )

    def _rank(self, token: int, logprobs: Logits) -> _Ranked:
        top = tuple(
            TopLogprob(other, self._vocabulary.token_bytes(other).decode(errors="replace"), float(logprobs[other]))
            for other in likeliest(logprobs, self.sampling.logprobs or 0)
        )
        return _Ranked(float(logprobs[token]), top)


def advance(sequences: list[Sequence], logits: Logits) -> list[Delta | Broke]:
    """Choose and append the next token of each sequence, given its row of `logits` (rows, vocab); return the events.

    Sequences whose text is withheld give no event. One that fails gives `Broke`, and the others go on. Each sequence
    that ended, either way, has `finished` set.
    """
    shaped = _reshaped(sequences, logits)
    picks = choose(
        shaped, [s.sampling for s in sequences], [s.draw() if s.sampling.temperature else 0.0 for s in sequences]
    )
    usable = np.isfinite(shaped.max(axis=1))
    asked = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
    logprobs = dict(zip(asked, log_softmax(logits[asked]), strict=True)) if asked else {}
    events: list[Delta | Broke] = []
    for row, sequence in enumerate(sequences):
        event = _append_next(sequence, int(picks[row]), shaped[row], bool(usable[row]), logprobs.get(row))
        if event is not None:
            events.append(event)
    return events


def _reshaped(sequences: list[Sequence], logits: Logits) -> Logits:
    """Return the logits with bias and penalties; a copy if there are any."""
    if not any(sequence.reshapes for sequence in sequences):
        return logits
    shaped = logits.copy()
    for sequence, row in zip(sequences, shaped, strict=True):
        sequence.reshape(row)
    return shaped


def _append_next(
    sequence: Sequence, pick: int, row: Logits, usable: bool, logprobs: Logits | None
) -> Delta | Broke | None:
    """Append one sequence's next token; an error here breaks that sequence alone."""
    try:
        if not usable:
            raise ArithmeticError("the model's output is not a number")
        return sequence.append(pick if sequence.accepts(pick) else sequence.choose_allowed(row), logprobs)
    except Exception as error:
        return sequence.fail(error)
