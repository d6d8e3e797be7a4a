"""One sequence in ExLlamaV2's batch: the library's job, with four things done our way.

- Prompts: a step computes at most the prompt tokens that the scheduler allows, in all jobs together.
- Choosing: `worker.engines.output.sampling` draws the token, as on numpy, at a point that is a function of seed and
  position, so that a sequence resumed elsewhere goes on as it would have here. The library's top_p keeps the likeliest
  tokens that fit into that mass, then unlikely ones where a likelier one did not fit: that is not what top_p means.
- Text: withholding, stop and banned strings, guides and the end are `worker.engines.output.sequence`'s, as in every
  engine. The library's own banned strings are not used: it releases the ids of tokens that it removed again, does not
  check while a character is incomplete, and ignores tokens that were guessed ahead.
- Room: pages for a slice of the output are allocated at first, and one by one as it grows.

The library's own pages, forward passes and bookkeeping are untouched. An error while a token is chosen breaks this job
alone and never leaves it: an exception would poison the library's page table for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from exllamav2.ext import exllamav2_ext, none_tensor
from exllamav2.generator import ExLlamaV2DynamicJob
from exllamav2.generator.dynamic import _randomhash, _tensor_hash_checksum
from torch import Tensor

from worker.engines.base import Prefilled, StepEvent
from worker.engines.exllamav2.memory import whole_pages
from worker.engines.exllamav2.model import strictly
from worker.engines.exllamav2.options import PAGE_TOKENS
from worker.engines.output.sampling import Logits, choose, log_softmax
from worker.engines.output.sequence import Sequence


@dataclass
class Step:
    """State that jobs share during one step: prompt tokens that may still be computed, and the events so far."""

    prefill_tokens: int = 0
    events: list[StepEvent] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A sequence, and its figures that survive a replay.

    Pages for `tokens_reserved` tokens are allocated. `prefill_tokens` of them, prompt and resumed ones, were there at
    admission. `vocab` of the logits are tokens. `ahead` tokens are guessed in a step.
    """

    sequence: Sequence
    tokens_reserved: int
    prefill_tokens: int
    vocab: int
    ahead: int


class JobFault(Exception):
    """The library failed in the part of a step that is `job`'s alone. `__cause__` is its exception."""

    def __init__(self, job: SequenceJob) -> None:
        super().__init__(job)
        self.job = job


class SequenceJob(ExLlamaV2DynamicJob):
    """A sequence from its prompt to its end. `reported` of its prefilled tokens were reported before."""

    def __init__(self, plan: Plan, step: Step, reported: int) -> None:
        strictly(
            ExLlamaV2DynamicJob.__init__,
            self=self,
            input_ids=torch.tensor([plan.sequence.tokens], dtype=torch.long),
            # Guessed tokens need room in the pages too, even those beyond the budget.
            max_new_tokens=whole_pages(plan.tokens_reserved + plan.ahead) - len(plan.sequence.tokens),
        )
        self.time_first_prefill = 0.0  # the library reckons with it, even for a prompt of one token
        self.plan = plan
        self.sequence = plan.sequence
        self.reported = reported
        self.ready = False  # its whole prompt may be computed: the last token of it in the first decode step
        if self.sequence.sampling.banned_strings:
            # The library then expects that tokens are removed again: it shares no page of the output.
            self.checkpoint = {"offset": 1}
        self._step = step
        self._logprobs: Logits | None = None
        self._failure: Exception | None = None

    # ---- the prompt --------------------------------------------------------------------------------------------------

    def adopt(self) -> int:
        """Adopt the cached part of this prompt, right after pages were allocated; return the number of tokens."""
        last = len(self._tokens) - 1
        while self._position < last:
            before = self._position
            self._follow()
            if self._position == before:
                self._compute(before + self._copyable(before, last))
            if self._position == before:
                break
        return self._position

    def prefill(self, results: list[dict[str, object]]) -> None:  # noqa: ARG002 (events are ours)
        """Compute as much of the prompt as this step allows."""
        if self.ready:
            return
        try:
            self._prefill()
        except Exception as error:
            raise JobFault(self) from error

    def is_prefill_done(self) -> bool:
        """Return whether the next token can be computed."""
        return self.ready and bool(super().is_prefill_done())

    def _prefill(self) -> None:
        step, last = self._step, len(self._tokens) - 1
        self._follow()
        while step.prefill_tokens > 0 and self._position < last:
            before = self._position
            self._compute(min(last, before + step.prefill_tokens))
            step.prefill_tokens -= self._position - before
            if self._position == before:
                break
        if step.prefill_tokens > 0 and self._position == last:
            step.prefill_tokens -= 1
            self.ready = True
        done = self._position + self.ready
        if self.reported < done <= self.plan.prefill_tokens:
            self.reported = done
            step.events.append(Prefilled(self.sequence.lease, done, self.plan.prefill_tokens))

    @property
    def _tokens(self) -> Any:
        return self.sequences[0].sequence_ids

    @property
    def _position(self) -> int:
        """Tokens in the cache."""
        return int(self.sequences[0].kv_position)

    def _compute(self, end: int) -> None:
        """Let the library bring the cache to `end` tokens, by copying and computing, as if the prompt ended there.

        It may stop before, at the end of a chunk or of a page.
        """
        part, tokens = self.sequences[0], self._tokens
        whole = len(tokens)
        tokens.truncate(end + 1)
        try:
            super().prefill([])
        finally:
            tokens.seq_len = whole
            part.prefill_complete = False

    def _follow(self) -> None:
        """Skip tokens that other jobs computed in shared pages: such pages are full of prompt."""
        part = self.sequences[0]
        while (number := part.kv_position // PAGE_TOKENS) < len(part.page_hashes):
            done = number * PAGE_TOKENS + part.allocated_pages[number].kv_position
            if done <= part.kv_position:
                return
            part.kv_position = done

    def _copyable(self, start: int, last: int) -> int:
        """Return how many tokens from `start`, the beginning of a page, the cache has; 0 if too few to copy."""
        if start % PAGE_TOKENS:
            return 0
        number = start // PAGE_TOKENS
        pages = self.sequences[0].allocated_pages
        own, before = pages[number], pages[number - 1].phash if number else None
        wanted = self._tokens.torch_slice(start, min(start + PAGE_TOKENS, last))
        best = max(
            (
                int(exllamav2_ext.count_match(page.sequence, wanted, page.kv_position))
                for page in self.generator.all_pages
                if page.prev_hash == before and page is not own and page.kv_position
            ),
            default=0,
        )
        return best if best > 1 else 0

    # ---- room --------------------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Return whether the next step has room in the pages of this sequence; adds another page if it needs one."""
        part, generator = self.sequences[0], self.generator
        if len(self._tokens) + self.plan.ahead < len(part.allocated_pages) * PAGE_TOKENS:
            return True
        free = generator.unreferenced_pages.values()
        if not free:
            return False
        oldest = min(free, key=lambda page: page.access_serial)
        generator.access_serial += 1
        oldest.add_ref_unique(generator.access_serial)
        part.allocated_pages.append(oldest)
        part.block_index_tensor = None
        self.max_new_tokens += PAGE_TOKENS
        self.plan = replace(self.plan, tokens_reserved=self.plan.tokens_reserved + PAGE_TOKENS)
        return True

    def deallocate_pages(self) -> None:
        """Free the pages. Their contents can be found again, but only at the position that they were made for.

        The library renames a page whose contents another has too, and forgets which one it followed: it would match the
        beginning of a prompt.
        """
        pages = self.sequences[0].allocated_pages or []
        followed = [page.prev_hash_revert if page.can_revert else page.prev_hash for page in pages]
        super().deallocate_pages()
        for page, before in zip(pages, followed, strict=True):
            if before is not None and page.prev_hash is None:
                page.kv_position = 0

    # ---- the next token ----------------------------------------------------------------------------------------------

    def receive_logits(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
        """Draw a token from `logits` (1, 1, padded vocab), in any thread: nothing of the sequence changes here."""
        try:
            token = self._draw(logits)
        except Exception as error:
            self._failure, token = error, 0
        return _token(token), none_tensor, none_tensor, none_tensor, False

    def receive_sample(
        self,
        logits: Tensor,
        next_token: Tensor,
        next_k_tokens: Tensor,  # noqa: ARG002 (likeliest tokens and filters of the library's are not used)
        next_k_probs: Tensor,  # noqa: ARG002 (as above)
        next_prob: Tensor,  # noqa: ARG002 (as above)
        filter_eos: bool,  # noqa: ARG002 (as above)
        results: list[dict[str, object]],  # noqa: ARG002 (events are ours)
        first_sample_in_sd_batch: bool = True,
    ) -> tuple[bool, Tensor]:
        """Append the token; return whether the sequence has ended, and the token that was chosen in the end."""
        token = 0
        if self._failure is None:
            try:
                token = self._allowed(int(next_token.item()), logits)
            except Exception as error:
                self._failure = error
        if self._failure is not None:
            self._step.events.append(self.sequence.fail(self._failure))
            return True, next_token
        final = _token(token)
        try:
            # Its own stop conditions are not used: only pages and positions are kept there.
            super().receive_sample(
                logits, final, none_tensor, none_tensor, none_tensor, False, [], first_sample_in_sd_batch
            )
            event = self.sequence.append(token, self._logprobs)
            if self.checkpoint is not None:
                self._follow_sequence()
        except Exception as error:
            raise JobFault(self) from error
        if event is not None:
            self._step.events.append(event)
        return self.sequence.finished, final

    def _follow_sequence(self) -> None:
        """Remove the tokens that the sequence removed. Pages of the output stay hidden: they may change again."""
        part, gone = self.sequences[0], len(self._tokens) - len(self.sequence.tokens)
        if self.sequence.finished:
            return
        if gone:
            pages = range((part.kv_position - gone) // PAGE_TOKENS, part.kv_position // PAGE_TOKENS + 1)
            self._tokens.truncate(len(self.sequence.tokens))
            part.kv_position -= gone
            for number in pages:
                page = part.allocated_pages[number]
                assert page.ref_count == 1, "tokens in a page that others have were to be removed"
                if page.kv_position == PAGE_TOKENS:
                    page.update_hash(_randomhash())
                page.kv_position = max(part.kv_position - number * PAGE_TOKENS, 0)
        number = part.kv_position // PAGE_TOKENS
        if number and part.allocated_pages[number].kv_position == 0:
            # A page without a predecessor would match the beginning of a prompt.
            part.allocated_pages[number].prev_hash = part.allocated_pages[number - 1].phash

    def _draw(self, logits: Tensor) -> int:
        sequence, shown = self.sequence, logits[0, 0].numpy()[: self.plan.vocab]
        if not np.isfinite(shown.max()):
            raise ArithmeticError("the model's output is not a number")
        self._logprobs = log_softmax(shown[None])[0] if sequence.sampling.logprobs is not None else None
        sequence.reshape(shown)
        if not np.isfinite(shown.max()):
            raise ArithmeticError("bias, penalties and bans leave no token")
        return int(choose(shown[None], [sequence.sampling], [sequence.draw()])[0])

    def _allowed(self, token: int, logits: Tensor) -> int:
        """Return the token, or if the guide refuses it, one that it allows. Changes the guide."""
        if self.sequence.accepts(token):
            return token
        return self.sequence.choose_allowed(logits[0, 0].numpy()[: self.plan.vocab])


def page_names(prompt_ids: tuple[int, ...]) -> tuple[bytes, ...]:
    """Return the library's names of the pages that a prompt fills. Its last token is computed in any case."""
    names: list[bytes] = []
    ids = torch.tensor(prompt_ids, dtype=torch.long)
    for number in range((len(prompt_ids) - 1) // PAGE_TOKENS):
        page = ids[None, number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
        names.append(_tensor_hash_checksum(page, names[-1] if names else None))
    return tuple(names)


def _token(token: int) -> Tensor:
    return torch.tensor([[token]], dtype=torch.long)
