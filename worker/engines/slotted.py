"""The skeleton of engines with one row of KV cache per slot: which sequences run, where, and what each step computes.

An engine of this kind is a `Runner`, which computes, inside a `SlottedEngine`, which is the engine port. Sequences join
and leave between any two steps. A step computes one token of each sequence in decode, and chunks of the prompts in
order of admission, up to a limit. Prompts that begin alike are computed once: a slot keeps its keys and values when
its sequence leaves, and with `wait_for_leader` a prompt waits for one before it that is computing the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from worker.engines.base import Capacity, EngineInfo, Forms, Prefilled, Prepared, StepEvent
from worker.engines.output.sequence import Sequence
from worker.engines.prompt.reader import ModelReader
from worker.engines.slots import SHARED_TOKENS_MIN, Placement, Slots, common_prefix

UNBOUNDED = 1 << 62


@dataclass(slots=True, eq=False)
class SlotRow:
    """A sequence in a slot: `cached` of its tokens are in the cache, `prefill_tokens` were there at admission.

    While it waits for `leader`, it is not computed: the first `common` tokens are going to be copied from there.
    """

    sequence: Sequence
    slot: int
    cached: int
    prefill_tokens: int
    leader: SlotRow | None = None
    common: int = 0

    @property
    def prefilling(self) -> bool:
        """Whether tokens are left to compute before the next one can be chosen."""
        return self.cached < self.prefill_tokens

    def record(self, count: int) -> list[Prefilled]:
        """Record that the cache holds the next `count` tokens too; return the progress of a prompt."""
        prefilling = self.prefilling
        self.cached += count
        return [Prefilled(self.sequence.lease, self.cached, self.prefill_tokens)] if prefilling else []


R = TypeVar("R", bound=SlotRow)


class Runner(Protocol[R]):
    """The model and its cache, which compute what a `SlottedEngine` decides."""

    def share(self, placement: Placement) -> int:
        """Bring the shared tokens into the slot, from the donor if it is another; return how many are there now."""
        ...

    def row(self, sequence: Sequence, slot: int, cached: int) -> R:
        """Return the row of a sequence that is admitted."""
        ...

    def run(self, work: list[tuple[R, int]]) -> list[StepEvent]:
        """Compute the given number of tokens of each row; return the events.

        Records them, and chooses a token for each row that is not `prefilling` then. Sequences that end have `finished`
        set; the caller frees their slots.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class SlottedEngine(Generic[R]):
    """The engine port over a runner.

    `wait_for_leader`: prompts wait for others that compute the same tokens. Without `reuse` a slot keeps nothing of a
    sequence that left. `step_prefill_tokens_max` bounds the prompt tokens of a step below what the scheduler allows,
    `piece_tokens_max` those of one sequence; 0 is no bound.
    """

    def __init__(
        self,
        runner: Runner[R],
        info: EngineInfo,
        reader: ModelReader,
        *,
        wait_for_leader: bool = False,
        reuse: bool = True,
        step_prefill_tokens_max: int = 0,
        piece_tokens_max: int = 0,
    ) -> None:
        self._runner = runner
        self._info = info
        self._reader = reader
        self._slots = Slots(info.slots)
        self._wait_for_leader = wait_for_leader and reuse
        self._reuse = reuse
        self._step_prefill_tokens_max = step_prefill_tokens_max or UNBOUNDED
        self._piece_tokens_max = piece_tokens_max or UNBOUNDED
        self._running: dict[str, R] = {}  # in order of admission

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine, constant after loading."""
        return self._info

    @property
    def reader(self) -> ModelReader:
        """The reader of this model."""
        return self._reader

    @property
    def forms(self) -> Forms:
        """The compiled forms."""
        return self._reader.guides

    def adopt(self, prepared: Prepared) -> Prepared:
        """Return it as it is: a slot has room for any sequence."""
        return prepared

    def capacity(self) -> Capacity:
        """Return the slots that are free now; each has the cache of a whole context."""
        return self._slots.capacity(self._info.context_tokens)

    def fits(self, prepared: Prepared) -> bool:
        """Return whether a slot is free: each has room for any sequence."""
        return self.capacity().fits(prepared.tokens_max)

    def admit(self, prepared: Prepared) -> int:
        """Give a sequence a slot; return how many of its tokens were in the cache of any slot."""
        assert self.fits(prepared), "admitted without room"
        assert prepared.lease not in self._running, "admitted twice"
        sequence = Sequence(prepared, self._reader.vocabulary, self._reader.guides)
        placement = self._slots.place(sequence.tokens, {row.slot: self._kept(row) for row in self._running.values()})
        cached = self._runner.share(placement)
        row = self._running[sequence.lease] = self._runner.row(sequence, placement.slot, cached)
        if self._wait_for_leader:
            self._find_leader(row)
        return cached

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:
        """Advance all sequences: one token for those in decode, prompts in order of admission up to the limit.

        Raises what the runner raises for a failure of the whole batch.
        """
        work = self._plan(min(prefill_tokens_max, self._step_prefill_tokens_max))
        if not work:
            return []
        events = self._runner.run(work)
        if self._wait_for_leader:
            self._catch_up()
        for row, _ in work:
            if row.sequence.finished:
                self.leave(row.sequence.lease)
        return events

    def leave(self, lease: str) -> None:
        """Free a sequence's slot. What it holds is kept for prompts that begin alike."""
        row = self._running.pop(lease, None)
        if row is not None:
            self._slots.give_back(row.slot, self._kept(row))
            for other in self._running.values():
                if other.leader is row:
                    other.leader = None

    def close(self) -> None:
        """Free everything."""
        self._running.clear()
        self._runner.close()

    def _kept(self, row: R) -> list[int]:
        """Return the tokens in a row's slot that other sequences may share."""
        return row.sequence.tokens[: row.cached] if self._reuse else []

    def _plan(self, budget: int) -> list[tuple[R, int]]:
        """Return the rows that this step computes, with the number of tokens of each."""
        work = []
        for row in self._running.values():
            if row.leader is not None:
                continue
            count = 1
            if row.prefilling:
                count = min(row.prefill_tokens - row.cached, budget, self._piece_tokens_max)
                budget -= count
            if count > 0:
                work.append((row, count))
        return work

    def _find_leader(self, row: R) -> None:
        """Let a prompt wait for one before it that is in prefill and begins alike, rather than compute the same."""
        least = row.cached + SHARED_TOKENS_MIN
        for other in self._running.values():
            if other.prefilling and other is not row:
                common = common_prefix(row.sequence.tokens[:-1], other.sequence.tokens[: other.prefill_tokens])
                if common >= least:
                    row.leader, row.common, least = other, common, common + 1

    def _catch_up(self) -> None:
        """Give the rows that waited what their leaders have computed."""
        for row in self._running.values():
            if row.leader is not None and row.leader.cached >= row.common:
                row.cached = self._runner.share(Placement(row.slot, row.leader.slot, row.common))
                row.leader = None
