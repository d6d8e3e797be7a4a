"""A small deterministic engine for tests of the scheduler: it implements the port, counts instead of computing, and
checks on every call that nobody overbooks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.engines.base import (
    Broke,
    Capacity,
    Delta,
    EngineInfo,
    Generation,
    Paused,
    Prefilled,
    Prepared,
    StepEvent,
)
from worker.errors import InvalidParams
from worker.requests import Prompt, Sampling
from worker.scheduler.works import Work

STEP_S, TOKEN_S = 0.001, 0.0001


class Clock:
    """Seconds that pass only when somebody lets them."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class CountingSequence:
    """A sequence in the engine: the next token's position is `position`, `left` tokens are still to be prefilled.

    It holds cache for `reserved` tokens.
    """

    prepared: Prepared
    total: int
    left: int
    position: int
    reserved: int


class CountingEngine:
    """Token n of every output is the number n, as text "n ". One token of prompt per character.

    A prompt that begins with "refuse" or "stumble" raises in `prepare`, with "break" it breaks alone at its first
    token, with "explode" it takes the whole engine down. `on_step` is called with the tokens of each step. With
    `slice_tokens` sequences reserve that many tokens of output at a time, and are paused when no block is free. `watch`
    is called for every work that is prepared or admitted.
    """

    def __init__(
        self,
        slots: int = 4,
        kv_blocks: int = 1000,
        block: int = 16,
        cached: int = 0,
        on_step: Callable[[int], None] | None = None,
        slice_tokens: int = 0,
    ) -> None:
        self.slots, self.kv_blocks, self.block, self.cached = slots, kv_blocks, block, cached
        self.on_step = on_step
        self.slice_tokens = slice_tokens
        self.sequences: dict[str, CountingSequence] = {}
        self.paused: dict[str, int] = {}
        self.steps = 0
        self.prefill_tokens_max: int | None = None
        self.closed = False
        self.leaking = False
        self.watch: Callable[[str, str], None] = lambda _call, _work_id: None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="counting",
            model="numbers",
            device="none",
            context_tokens=self.kv_blocks * self.block,
            vocab_size=1 << 20,
            parameters=0,
            slots=self.slots,
            weights_bytes=0,
            has_chat_template=False,
        )

    def prepare(self, generation: Generation) -> Prepared:
        self.watch("prepare", generation.lease)
        text = generation.prompt.text
        if text.startswith("refuse"):
            raise InvalidParams("this prompt is refused")
        if text.startswith("stumble"):
            raise ZeroDivisionError("a bug in the tokenizer")
        return Prepared(generation, tuple(range(len(text))), generation.max_tokens, self.slice_tokens)

    def capacity(self) -> Capacity:
        blocks = self.kv_blocks - sum(self.blocks(s.reserved) for s in self.sequences.values())
        slots = self.slots - len(self.sequences)
        if self.leaking:
            slots = blocks = 0
        return Capacity(slots, self.slots, blocks * self.block, self.kv_blocks * self.block, self.block)

    def fits(self, prepared: Prepared) -> bool:
        return self.capacity().fits(prepared.tokens_reserved)

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.block)

    @property
    def pending(self) -> int:
        return sum(sequence.left for sequence in self.sequences.values())

    def admit(self, prepared: Prepared) -> int:
        self.watch("admit", prepared.lease)
        assert self.fits(prepared), "overbooked"
        assert prepared.lease not in self.sequences, "admitted twice"
        assert self.prefill_tokens_max is None or self.pending < self.prefill_tokens_max, "too many prompts at once"
        done = self.paused.pop(prepared.lease, len(prepared.generation.generated))
        total = len(prepared.prompt_ids) + done
        assert prepared.tokens_present == total
        cached = min(self.cached, total - 1)
        reserved = prepared.tokens_reserved
        self.sequences[prepared.lease] = CountingSequence(prepared, total, total - cached, done, reserved)
        return cached

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:
        self.steps += 1
        self.prefill_tokens_max = prefill_tokens_max
        events: list[StepEvent] = []
        budget, decoded = prefill_tokens_max, 0
        for lease, sequence in list(self.sequences.items()):
            if sequence.left:
                chunk = min(sequence.left, budget)
                budget -= chunk
                sequence.left -= chunk
                if chunk:
                    events.append(Prefilled(lease, sequence.total - sequence.left, sequence.total))
                if sequence.left:
                    continue
            events.append(self.decode(lease, sequence))
            decoded += 1
        if self.on_step is not None:
            self.on_step(prefill_tokens_max - budget + decoded)
        return events + self.pause()

    def pause(self) -> list[StepEvent]:
        """Give those at the end of their slice another block, or take them out."""
        events: list[StepEvent] = []
        for lease, sequence in list(self.sequences.items()):
            tokens = len(sequence.prepared.prompt_ids) + sequence.position
            if tokens < self.blocks(sequence.reserved) * self.block:
                continue
            if self.capacity().kv_tokens_free:
                sequence.reserved = tokens + 1
            else:
                del self.sequences[lease]
                self.paused[lease] = sequence.position
                events.append(Paused(lease, sequence.position))
        return events

    def decode(self, lease: str, sequence: CountingSequence) -> StepEvent:
        text = sequence.prepared.generation.prompt.text
        if text.startswith("explode"):
            raise RuntimeError("the engine exploded")
        if text.startswith("break"):
            del self.sequences[lease]
            return Broke(lease, "broken prompt")
        number = sequence.position
        sequence.position += 1
        last = sequence.position >= sequence.prepared.max_tokens
        if last:
            del self.sequences[lease]
        return Delta(lease, (number,), f"{number} ", finish="length" if last else None)

    def leave(self, lease: str) -> None:
        self.sequences.pop(lease, None)
        self.paused.pop(lease, None)

    def close(self) -> None:
        self.closed = True


def make_work(
    lease: str,
    account: str = "p",
    priority: int = 5,
    prompt: str | int = 4,
    max_tokens: int = 3,
    solo: bool = False,
    generated: Sequence[int] = (),
) -> Work:
    """Return a work; a number as prompt is the length of one."""
    generation = Generation(
        lease=lease,
        prompt=Prompt(text="x" * prompt if isinstance(prompt, int) else prompt),
        sampling=Sampling(),
        max_tokens=max_tokens,
        generated=tuple(generated),
    )
    return Work(generation=generation, account=account, priority=priority, solo=solo)
