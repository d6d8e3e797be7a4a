"""Structured output: a guide restricts the tokens that may come next (llguidance).

The next token is sampled freely and only checked; the mask over the whole vocabulary, which costs more, is computed
when the check fails. Forms are compiled in a thread beside the steps, and big ones are freed there.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b

import llguidance
import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.engines.output.beside import Beside
from worker.engines.output.healing import Healing
from worker.engines.vocabulary import Continuation, Vocabulary
from worker.errors import FieldError, InvalidParams
from worker.requests import ResponseFormat

FORMS_KEPT_MAX = 64
"""Compiled forms that are kept for reuse."""

FORMS_KEPT_MS_MAX = 3_000
"""Time that compiling all of them took. It stands for their memory, which cannot be measured: 80 MiB per second."""

BIG_MS = 20
"""A form that takes longer to compile is freed beside the steps: that takes milliseconds."""

MASK_MS_MAX, SLOW_MASKS_MAX = 50, 1
"""A form may be cheap at its beginning and dear later on: a sequence may have one slow mask, with the next it ends."""

ROW_ITEMS_MAX = 1_000
"""Parser items per token. An ambiguous grammar costs more with every one: it fails before a step exceeds some 20 ms."""

STEP_ITEMS_MAX = 20_000
"""Parser items per step, for which the whole batch waits; an object with 250 optional properties still fits."""

_POINTERS = {
    "json_object": "/response_format",
    "json_schema": "/response_format/schema",
    "regex": "/response_format/pattern",
    "grammar": "/response_format/grammar",
}


@dataclass(frozen=True, slots=True)
class _Form:
    """A compiled form, and the milliseconds of CPU time that this took."""

    matcher: llguidance.LLMatcher
    ms: float


class Guide:
    """Follows the output of one sequence. A token that `accept` refuses leaves it unchanged.

    Raises InvalidParams where the form turns out to be one that nothing can follow, or nothing within the limits.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, vocab: int, wanted: ResponseFormat, free: Callable[[object], None] | None
    ) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._wanted = wanted
        self._free = free
        self._slow_masks = 0

    def __del__(self) -> None:
        # Here because a sequence may leave at any moment, in many ways, and each would free it in the step.
        if self._free is not None:
            self._free(self._matcher)

    @property
    def complete(self) -> bool:
        """Whether the output is whole: nothing may follow."""
        return self._matcher.is_stopped()

    def accept(self, token: int) -> bool:
        """Accept a token if it may come next, and return whether."""
        accepted = self._matcher.try_consume_tokens([token]) == 1
        self._check()
        return accepted

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next, shape (vocab,)."""
        begun_s = time.thread_time()
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        if 1000 * (time.thread_time() - begun_s) > MASK_MS_MAX:
            self._slow_masks += 1
            if self._slow_masks > SLOW_MASKS_MAX:
                raise self.refusal(f"needs more than {MASK_MS_MAX} ms per token: make it simpler")
        return np.unpackbits(words, bitorder="little")[: self._vocab].astype(np.bool_)

    def refusal(self, reason: str) -> InvalidParams:
        """Return the error that ends a sequence whose form is to blame."""
        return _refusal(self._wanted, reason)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self.refusal(_reason(self._matcher))


class Guides:
    """Makes guides for one vocabulary. The tokenizer is built on first use, compiled forms are kept for reuse.

    `healing` finds the tokens that may be the first of an output that heals its prompt.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.healing = Healing(vocabulary)
        self._vocabulary = vocabulary
        self._beside = Beside()
        self._lock = threading.Lock()
        self._forms: OrderedDict[bytes, _Form] = OrderedDict()
        self._compiling: dict[bytes, Future[_Form]] = {}

    def guide(self, wanted: ResponseFormat, generated: tuple[int, ...] = ()) -> Guide | None:
        """Return a guide for the wanted format, None for plain text; it has read the tokens `generated` already.

        Waits while the form is compiled. Raises InvalidParams for a bad schema, pattern or grammar, and where
        `generated` does not follow it.
        """
        if wanted.type == "text":
            return None
        form = self._form(wanted)
        matcher = form.matcher.deep_copy()
        if matcher.try_consume_tokens(list(generated)) != len(generated):
            raise _refusal(wanted, "the tokens generated so far do not follow it")
        return Guide(matcher, self._vocabulary.size, wanted, self._beside.free if form.ms > BIG_MS else None)

    def ready(self, wanted: ResponseFormat) -> bool:
        """Return whether a guide for the wanted format needs no compiling."""
        return wanted.type == "text" or digest(wanted) in self._forms

    def compile_beside(self, wanted: ResponseFormat) -> Future[None]:
        """Compile a form in a thread of its own; the form is `ready` when the future is done.

        The future fails with InvalidParams for a bad schema, pattern or grammar. It is the caller's alone: to cancel it
        stops nothing that another waits for.
        """
        done: Future[None] = Future()

        def finish(compiled: Future[_Form]) -> None:
            if not done.set_running_or_notify_cancel():
                return
            error = compiled.exception()
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self._compile(wanted).add_done_callback(finish)
        return done

    def try_out(self, wanted: ResponseFormat, compile_ms_max: float, mask_ms_max: float) -> None:
        """Compile a form and compute a mask.

        Raises InvalidParams for a bad one, and one that needs more CPU time than that; it is then not kept.
        """
        if self.ready(wanted):
            return
        try:
            form = self._form(wanted)
            if form.ms > compile_ms_max:
                raise _refusal(wanted, f"needs {form.ms:.0f} ms to compile, and {compile_ms_max:.0f} ms are allowed")
            matcher, begun_s = form.matcher.deep_copy(), time.thread_time()
            matcher.compute_bitmask()
            mask_ms = 1000 * (time.thread_time() - begun_s)
            if mask_ms > mask_ms_max:
                raise _refusal(wanted, f"needs {mask_ms:.0f} ms per token, and {mask_ms_max:.0f} ms are allowed")
        except InvalidParams:
            with self._lock:
                self._forms.pop(digest(wanted), None)
            raise

    def warm_up(self) -> None:
        """Build the tokenizer, for which the first form would wait. Starts no thread."""
        with contextlib.suppress(InvalidParams):
            self._tokenizer  # noqa: B018 (builds it)

    def _form(self, wanted: ResponseFormat) -> _Form:
        """Return a compiled form, waiting for it if need be."""
        key = digest(wanted)
        with self._lock:
            form = self._forms.get(key)
            if form is not None:
                self._forms.move_to_end(key)
                return form
        return self._compile(wanted).result()

    def _compile(self, wanted: ResponseFormat) -> Future[_Form]:
        """Compile a form beside the steps, once for all who ask meanwhile."""
        key = digest(wanted)
        with self._lock:
            compiling = self._compiling.get(key)
            if compiling is None:
                compiling = self._compiling[key] = self._beside.run(partial(self._compile_here, key, wanted))
            return compiling

    def _compile_here(self, key: bytes, wanted: ResponseFormat) -> _Form:
        """Compile a form in this thread and keep it; free what is then too much."""
        try:
            tokenizer, begun_s = self._tokenizer, time.thread_time()
            matcher = _matcher(tokenizer, _grammar(wanted))
            if matcher.is_error():
                raise _refusal(wanted, _reason(matcher))
            form = _Form(matcher, 1000 * (time.thread_time() - begun_s))
            with self._lock:
                self._forms[key] = form
                evicted = self._evict()
            del evicted  # freed here, without the lock
            return form
        finally:
            with self._lock:
                del self._compiling[key]

    def _evict(self) -> list[_Form]:
        """Remove the forms that were not used for longest, down to the limits, but for the last one; return them."""
        evicted, ms = [], sum(form.ms for form in self._forms.values())
        while len(self._forms) > 1 and (len(self._forms) > FORMS_KEPT_MAX or ms > FORMS_KEPT_MS_MAX):
            evicted.append(self._forms.popitem(last=False)[1])
            ms -= evicted[-1].ms
        return evicted

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        if not self._vocabulary.eos_ids:
            raise InvalidParams("This model has no end token: structured output is not possible.")
        wrapper = llguidance.TokenizerWrapper(_Tokens(self._vocabulary))
        return llguidance.LLTokenizer(wrapper, self._vocabulary.size, sorted(self._vocabulary.eos_ids))


class _Tokens:
    """A vocabulary in the shape that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        # What a grammar forces goes on after what there is.
        self._continuation = Continuation(vocabulary)
        self.eos_token_id = min(vocabulary.eos_ids)
        self.bos_token_id = vocabulary.bos_id
        self.special_token_ids = sorted(vocabulary.special_ids)
        self.tokens = [vocabulary.token_bytes(token) for token in range(vocabulary.size)]
        # Grammars name control tokens. The byte keeps them apart from text: no character has it.
        for name in vocabulary.special_names:
            ids = vocabulary.encode(name, special=True)
            if len(ids) == 1 and not self.tokens[ids[0]]:
                self.tokens[ids[0]] = b"\xff" + name.encode()

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return self._continuation.encode(text, special=False)


def digest(value: object) -> bytes:
    """Return a short name for a form or a prompt; equal ones have the same. Half a character is no error in it."""
    return blake2b(json.dumps(msgspec.to_builtins(value)).encode(), digest_size=16).digest()


def _matcher(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """Compile a grammar and check that some token may begin; the matcher returned holds the error."""
    limits = llguidance.LLParserLimits(max_items_in_row=ROW_ITEMS_MAX, step_max_items=STEP_ITEMS_MAX)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    matcher.compute_bitmask()
    return matcher


def _reason(matcher: llguidance.LLMatcher) -> str:
    """Return why a matcher failed in a sentence that a client understands: without the state of the library."""
    reason = matcher.get_error().partition("\n<")[0]
    if reason == "NoExtensionBias":
        return "no text fits it"
    if "too many" in reason or "limit" in reason or "fuel" in reason:
        return "it is too complex: make it simpler"
    if reason.startswith("panic"):
        return "it cannot be compiled, because it combines its parts in a way that is not supported"
    return reason


def _grammar(wanted: ResponseFormat) -> str:
    """Return the grammar in llguidance's own form. Raises InvalidParams when the part that it needs is missing."""
    try:
        if wanted.type == "regex" and wanted.pattern is not None:
            return llguidance.LLMatcher.grammar_from_regex(wanted.pattern)
        if wanted.type == "grammar" and wanted.grammar is not None:
            return llguidance.LLMatcher.grammar_from_lark(wanted.grammar)
        schema = {"type": "object"} if wanted.type == "json_object" else wanted.schema
        if wanted.type in ("json_object", "json_schema") and schema is not None:
            # Without fixed whitespace a small model fills its budget with it.
            return llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_flexible": False}
            )
    except ValueError as error:
        raise _refusal(wanted, str(error)) from error
    raise _refusal(wanted, "is required for this type")


def _refusal(wanted: ResponseFormat, reason: str) -> InvalidParams:
    """Return the error for a bad schema, pattern or grammar."""
    detail = " ".join(reason.split())[:500]
    pointer = _POINTERS[wanted.type]
    return InvalidParams(f"The {wanted.type} of the response format: {detail}", errors=(FieldError(pointer, detail),))
