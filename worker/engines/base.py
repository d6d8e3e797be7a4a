"""The engine port: a batch of sequences, advanced one step at a time by one thread that owns the engine.

An engine knows nothing of queues, clients or clocks. The scheduler admits sequences while there is room, calls `step`
again and again, and hands the deltas on. Everything here fits engines that own their batch (numpy, llama.cpp) and
those that keep a queue of their own (ExLlamaV2: admit is enqueue, step is iterate, leave is cancel).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeAlias

import msgspec

from worker import printable
from worker.config.settings import PIECE_TOKENS_MAX
from worker.errors import Problem
from worker.events import FinishReason, TopLogprob
from worker.requests import Prompt, ResponseFormat, Sampling


class Generation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One sequence to generate, as it travels to the engine process.

    `lease` is unique among live sequences. `generated` are the ids produced by earlier attempts: the engine prefills
    them after the prompt and samples on at position `len(generated)`. `max_tokens` is the whole budget, including
    `generated`. `index` is the number of the choice in its job, for the reader's eyes only.
    `prompt_ids`: the prompt's token ids, packed as int32, where it was read before; then `prompt` is empty.
    """

    lease: str
    prompt: Prompt
    sampling: Sampling
    max_tokens: int
    index: int = 0
    generated: tuple[int, ...] = ()
    prompt_ids: bytes = b""


class Bounds(msgspec.Struct, frozen=True):
    """The facts about a loaded engine that a `Reader` needs, which has only read the model's file.

    A context holds `context_tokens`, the whole KV cache `kv_tokens_total`; rows of logits have `vocab_size` entries.
    `rewinds`: the engine can take tokens back, as banned strings need.
    """

    context_tokens: int
    kv_tokens_total: int
    vocab_size: int
    rewinds: bool = False


def pack_ids(ids: tuple[int, ...]) -> bytes:
    """Return token ids as int32 in the byte order of this machine, which they never leave."""
    return array("i", ids).tobytes()


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """Return the token ids that `pack_ids` has packed."""
    return tuple(array("i", packed))


class Prepared(msgspec.Struct, frozen=True):
    """A generation whose prompt is read and checked. `prompt_ids` has at least one token.

    `max_tokens` is cut to what fits the context: `len(prompt_ids) + max_tokens <= context_tokens`. An engine that
    reserves KV cache in slices, of `slice_tokens` output tokens, pauses sequences when there is no room for the next
    slice; `produced` counts the output tokens of such a sequence. `healed` are the bytes of a token that was removed
    from the prompt, `healed_ids` its id: the first token of the output begins with them, its text is shown without.
    `prompt_pages` are the engine's own names for the pages of KV cache that the prompt fills, if it has such names.
    """

    generation: Generation
    prompt_ids: tuple[int, ...]
    max_tokens: int
    slice_tokens: int = 0
    produced: int = 0
    healed: bytes = b""
    healed_ids: tuple[int, ...] = ()
    prompt_pages: tuple[bytes, ...] = ()

    @property
    def lease(self) -> str:
        """The generation's lease."""
        return self.generation.lease

    @property
    def packed_prompt(self) -> bytes:
        """The ids of the whole prompt, a token that is healed included, for `Generation.prompt_ids`."""
        return pack_ids((*self.prompt_ids, *self.healed_ids))

    @property
    def tokens_max(self) -> int:
        """Tokens that the sequence may grow to: prompt and the whole output budget."""
        return len(self.prompt_ids) + self.max_tokens

    @property
    def tokens_present(self) -> int:
        """Tokens before the first step: the prompt, and the output of an earlier attempt or before a pause."""
        return len(self.prompt_ids) + max(self.produced, len(self.generation.generated))

    @property
    def tokens_reserved(self) -> int:
        """Tokens of KV cache to reserve at admission: the whole sequence, or the tokens present and one slice."""
        return min(self.tokens_max, self.tokens_present + self.slice_tokens) if self.slice_tokens else self.tokens_max


class Prefilled(msgspec.Struct, frozen=True, array_like=True, tag="P"):
    """`done` of `total` tokens of a sequence are in the KV cache (prompt and resumed tokens)."""

    lease: str
    done: int
    total: int


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="D", gc=False):
    """Progress of one sequence in one step: text that may be shown and the ids it came from, or its end, or both.

    Tokens whose text must be held back (half a character, the beginning of a stop string) are withheld with their
    text: after each delta no text of the released ids is pending, so a sequence can be resumed from its ids alone.
    `ids` never contain the end-of-sequence token, nor tokens of a matched stop string.
    """

    lease: str
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] | None = None
    finish: FinishReason | None = None
    stop_sequence: str | None = None


class Broke(msgspec.Struct, frozen=True, array_like=True, tag="B"):
    """One sequence alone failed inside a step; it has left the engine. The others go on.

    `error` says whose fault it was: `invalid_params` for a form that no token can follow, else `engine_failed`.
    """

    lease: str
    error: Problem


class Paused(msgspec.Struct, frozen=True, array_like=True, tag="X"):
    """A sequence left the batch after `produced` output tokens, because there is no KV cache for its next slice.

    The engine keeps the rest of its state, withheld text and tokens included. Admitted again, with `produced` in its
    `Prepared`, it goes on exactly where it was.
    """

    lease: str
    produced: int


StepEvent: TypeAlias = Prefilled | Delta | Broke | Paused


class Capacity(msgspec.Struct, frozen=True):
    """Room in the engine now: free sequences, and free KV cache in tokens, handed out in blocks of `kv_block_tokens`.

    A sequence needs `ceil(tokens_reserved / kv_block_tokens)` blocks, less those that it can share with others in the
    batch. Engines with one fixed row of cache per slot have blocks of a whole context, so that slots alone decide.
    """

    slots_free: int
    slots_total: int
    kv_tokens_free: int
    kv_tokens_total: int
    kv_block_tokens: int

    def fits(self, tokens: int) -> bool:
        """Return whether there is room for a sequence that needs `tokens` of KV cache."""
        blocks = -(-tokens // self.kv_block_tokens)
        return self.slots_free > 0 and blocks * self.kv_block_tokens <= self.kv_tokens_free


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a loaded engine, for `/health`, the start banner and limits. `bounds` are those that readers need.

    `deterministic`: the logits of a sequence do not depend on what runs beside it, on how its prompt is cut or where
    its prefix comes from. So the same seed gives the same text.

    Names come from files, and are cleaned here once: they reach terminals, logs and pages.
    """

    engine: str
    model: str
    device: str
    context_tokens: int
    vocab_size: int
    parameters: int
    slots: int
    weights_bytes: int
    has_chat_template: bool
    kv_tokens_total: int
    rewinds: bool = False
    deterministic: bool = False
    details: dict[str, str] = {}

    def __post_init__(self) -> None:
        for field in ("model", "device"):
            msgspec.structs.force_setattr(self, field, printable.name(getattr(self, field)))
        cleaned = {printable.name(key): printable.name(value) for key, value in self.details.items()}
        msgspec.structs.force_setattr(self, "details", cleaned)

    @property
    def bounds(self) -> Bounds:
        """What a `Reader` has to know of this engine."""
        return Bounds(self.context_tokens, self.kv_tokens_total, self.vocab_size, self.rewinds)


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to load: sent to the engine process, so it is plain data. `model` None is the bundled model.

    `context_tokens` 0 means the model's own (bounded by the engine), `threads` 0 lets the engine choose.
    `chat_template` names a file; `choose` puts its text in place of the name. `piece_tokens_max` bounds how many tokens
    of a prompt are computed at a time by engines whose results depend on it; 0 is no bound.
    """

    engine: str = "auto"
    model: str | None = None
    slots: int = 64
    context_tokens: int = 0
    threads: int = 0
    piece_tokens_max: int = PIECE_TOKENS_MAX
    chat_template: str | None = None
    options: dict[str, str] = {}


class LoadProgress(msgspec.Struct, frozen=True, array_like=True):
    """Loading: `done` of `total` layers (or stages) are in place, `bytes_loaded` of weights in memory."""

    stage: str
    done: int
    total: int
    bytes_loaded: int = 0


OnLoad: TypeAlias = Callable[[LoadProgress], None]


class Reader(Protocol):
    """Vocabulary, chat template and grammar compiler of a model, read from its file: no weights, no KV cache.

    It reads what strangers wrote, so it is called in a process that may die (`processes.hand`), or in `jobwire run`.
    """

    def prepare(self, generation: Generation, bounds: Bounds) -> Prepared:
        """Render, tokenize and check a generation. The prompt of the result's generation is empty: its ids are there.

        A generation with `prompt_ids` is not rendered and tokenized again. Raises InvalidParams for a prompt that is
        empty or too long for the context, a token id out of range, a bad schema or grammar, a need of more KV cache
        than there is, or a setting that the engine cannot honour.
        """
        ...

    def try_form(self, wanted: ResponseFormat, compile_ms_max: float, mask_ms_max: float) -> None:
        """Compile a form and compute a mask. Raises InvalidParams for one that is wrong, or takes longer than that."""
        ...

    def try_template(self) -> None:
        """Render a small conversation. Raises ModelError for a chat template that cannot be compiled, or fails."""
        ...


class Forms(Protocol):
    """The compiled forms of an engine. Only a few are kept, so one that is `ready` need not be later."""

    def ready(self, wanted: ResponseFormat) -> bool:
        """Return whether a sequence of this form can be admitted without compiling anything."""
        ...

    def compile_beside(self, wanted: ResponseFormat) -> Future[None]:
        """Compile a form in a thread beside the steps. The future fails with InvalidParams for one that is wrong."""
        ...


class Engine(Protocol):
    """A loaded model with its KV cache and batch. Not thread-safe: one thread constructs, steps and closes it."""

    @property
    def info(self) -> EngineInfo:
        """Facts about the engine, constant after loading."""
        ...

    @property
    def reader(self) -> Reader:
        """The reader of this engine's own vocabulary and template, for use in its process."""
        ...

    @property
    def forms(self) -> Forms:
        """The forms that sequences can be admitted with. `reader` compiles into the same place."""
        ...

    def adopt(self, prepared: Prepared) -> Prepared:
        """Return what a reader has prepared with this engine's own figures, without reserving anything."""
        ...

    def capacity(self) -> Capacity:
        """Return the room that is free now."""
        ...

    def fits(self, prepared: Prepared) -> bool:
        """Return whether a sequence can be admitted now. Cache that it shares with others is not counted."""
        ...

    def admit(self, prepared: Prepared) -> int:
        """Give a sequence a slot and its KV cache; return how many of its tokens were in the cache already.

        The caller asks `fits(prepared)` first; without room this is an AssertionError. A `Paused` sequence is admitted
        in the same way. A form that is not `ready` is compiled here, in the way of all others.
        """
        ...

    def step(self, prefill_tokens_max: int) -> list[StepEvent]:
        """Advance every sequence by one step: at most `prefill_tokens_max` prompt tokens in all, one token each for
        those in decode. Sequences that finish or break leave by themselves. Without sequences: an empty list.
        """
        ...

    def leave(self, lease: str) -> None:
        """Forget a sequence, running or paused. Its KV cache is free before the next step. Ignores unknown leases."""
        ...

    def close(self) -> None:
        """Free the model. The engine is not used afterwards."""
        ...
