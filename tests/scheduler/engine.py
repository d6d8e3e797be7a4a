"""A small deterministic engine for tests of the scheduler: it implements the port, counts instead of computing, and
checks on every call that nobody overbooks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import msgspec

from worker.engines.base import (
    Bounds,
    Broke,
    Capacity,
    Delta,
    EngineInfo,
    Generation,
    Paused,
    Prefilled,
    Prepared,
    StepEvent,
    unpack_ids,
)
from worker.errors import EngineFailed, InvalidParams
from worker.requests import Prompt, ResponseFormat, Sampling
from worker.scheduler.works import PreparedWork, Work

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


class CountingReader:
    """One token of prompt per character: its code point. A prompt that begins with "refuse" is refused."""

    def prepare(self, generation: Generation, bounds: Bounds) -> Prepared:
        text = words(generation.prompt_ids) or generation.prompt.text
        if text.startswith("refuse"):
            raise InvalidParams("this prompt is refused")
        if len(text) + generation.max_tokens > bounds.kv_tokens_total:
            raise InvalidParams(f"it needs more than {bounds.kv_tokens_total} tokens")
        read = msgspec.structs.replace(generation, prompt=Prompt(), prompt_ids=b"")
        return Prepared(read, tuple(map(ord, text)), generation.max_tokens)

    def try_form(self, wanted: ResponseFormat, compile_ms_max: float, mask_ms_max: float) -> None:
        if wanted.pattern == "refuse":
            raise InvalidParams(f"this form is refused: {compile_ms_max}, {mask_ms_max}")

    def try_template(self) -> None:
        """There is none."""


def words(packed: bytes) -> str:
    """Return a prompt's text from its ids."""
    return "".join(map(chr, unpack_ids(packed)))


class CountingForms:
    """Forms are compiled when the test says so: `finish`. The last `kept_max` stay ready."""

    def __init__(self, kept_max: int = 100) -> None:
        self.kept: list[ResponseFormat] = []
        self.kept_max = kept_max
        self.compiling: list[tuple[ResponseFormat, Future[None]]] = []

    def ready(self, wanted: ResponseFormat) -> bool:
        return wanted.type == "text" or wanted in self.kept

    def compile_beside(self, wanted: ResponseFormat) -> Future[None]:
        self.compiling.append((wanted, Future()))
        return self.compiling[-1][1]

    def finish(self) -> None:
        """Compile the form that was asked for first; one whose pattern is "bad" or "bug" cannot be compiled."""
        wanted, future = self.compiling.pop(0)
        if not future.set_running_or_notify_cancel():
            return
        if wanted.pattern == "bad":
            future.set_exception(InvalidParams("this form is bad"))
        elif wanted.pattern == "bug":
            future.set_exception(ZeroDivisionError("a bug in the compiler"))
        else:
            self.kept = [*self.kept, wanted][-self.kept_max :] if self.kept_max else []
            future.set_result(None)


class CountingEngine:
    """Token n of every output is the number n, as text "n ". One token of prompt per character.

    A prompt that begins with "stumble" raises in `adopt`, with "break" it breaks alone at its first token, with
    "explode" it takes the whole engine down. `on_step` is called with the tokens of each step. With `slice_tokens`
    sequences reserve that many tokens of output at a time, and are paused when no block is free. `watch` is called for
    every work that is adopted or admitted.
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
        self.reader = CountingReader()
        self.forms = CountingForms()
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
            kv_tokens_total=self.kv_blocks * self.block,
        )

    def adopt(self, prepared: Prepared) -> Prepared:
        self.watch("adopt", prepared.lease)
        if text_of(prepared).startswith("stumble"):
            raise ZeroDivisionError("a bug in the engine")
        return msgspec.structs.replace(prepared, slice_tokens=self.slice_tokens)

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
        assert prepared.lease in self.paused or self.forms.ready(prepared.generation.sampling.response_format)
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
        text = text_of(sequence.prepared)
        if text.startswith("explode"):
            raise RuntimeError("the engine exploded")
        if text.startswith("break"):
            del self.sequences[lease]
            return Broke(lease, EngineFailed("broken prompt").problem())
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
    pattern: str | None = None,
) -> Work:
    """Return a work; a number as prompt is the length of one. `pattern` is the form of its output."""
    generation = Generation(
        lease=lease,
        prompt=Prompt(text="x" * prompt if isinstance(prompt, int) else prompt),
        sampling=Sampling(response_format=ResponseFormat("regex", pattern=pattern) if pattern else ResponseFormat()),
        max_tokens=max_tokens,
        generated=tuple(generated),
    )
    return Work(generation=generation, account=account, priority=priority, solo=solo)


def text_of(prepared: Prepared) -> str:
    """Return the prompt's text."""
    return "".join(map(chr, prepared.prompt_ids))


def prepare_work(work: Work, bounds: Bounds | None = None) -> PreparedWork:
    """Return a work with its prompt read; without `bounds` of any size."""
    prepared = CountingReader().prepare(work.generation, bounds or Bounds(1 << 30, 1 << 30, 1 << 20))
    return PreparedWork(
        prepared=prepared, account=work.account, weight=work.weight, priority=work.priority, solo=work.solo
    )


def prepared_work(lease: str, *args: Any, **options: Any) -> PreparedWork:
    """Return what `make_work` makes, with its prompt read."""
    return prepare_work(make_work(lease, *args, **options))
