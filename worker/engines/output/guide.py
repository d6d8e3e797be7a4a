"""Structured output: a guide restricts the tokens that may come next (llguidance).

The next token is sampled freely and only checked; the mask over the whole vocabulary, which costs more, is computed
when the check fails.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import llguidance
import numpy as np
from numpy.typing import NDArray

from worker.engines.output.healing import Healing
from worker.engines.vocabulary import Vocabulary
from worker.errors import FieldError, InvalidParams
from worker.requests import ResponseFormat

GRAMMARS_CACHED_MAX = 16

ROW_ITEMS_MAX = 1_000
"""Parser items per token. An ambiguous grammar costs more with every one: it fails before a step exceeds some 20 ms."""

STEP_ITEMS_MAX = 20_000
"""Parser items per step, for which the whole batch waits; an object with 250 optional properties still fits."""

COMPILER_STACK_BYTES = 1 << 26
"""The compiler recurses along chains of rules: the usual stack, and the process with it, ends after some thousands.

Memory is committed only as far as it is used.
"""

_POINTERS = {
    "json_object": "/response_format",
    "json_schema": "/response_format/schema",
    "regex": "/response_format/pattern",
    "grammar": "/response_format/grammar",
}


class Guide:
    """Follows the output of one sequence. A token that `accept` refuses leaves it unchanged."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab: int) -> None:
        self._matcher = matcher
        self._vocab = vocab

    @property
    def complete(self) -> bool:
        """Whether the output is whole: nothing may follow."""
        return self._matcher.is_stopped()

    def accept(self, token: int) -> bool:
        """Accept a token if it may come next, and return whether. Raises RuntimeError if the grammar is too complex."""
        accepted = self._matcher.try_consume_tokens([token]) == 1
        self._check()
        return accepted

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next, shape (vocab,). Raises RuntimeError like `accept`."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(words, bitorder="little")[: self._vocab].astype(np.bool_)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"structured output: {_reason(self._matcher)}")


class Guides:
    """Makes guides for one vocabulary. The tokenizer is built on first use, compiled grammars are kept for reuse.

    `healing` finds the tokens that may be the first of an output that heals its prompt.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.healing = Healing(vocabulary)
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def guide(self, wanted: ResponseFormat, generated: tuple[int, ...] = ()) -> Guide | None:
        """Return a guide for the wanted format, None for plain text; it has read the tokens `generated` already.

        Raises InvalidParams for a bad schema, pattern or grammar, and where `generated` does not follow it.
        """
        if wanted.type == "text":
            return None
        matcher = self._compile(wanted).deep_copy()
        if matcher.try_consume_tokens(list(generated)) != len(generated):
            raise _refusal(wanted, "the tokens generated so far do not follow it")
        return Guide(matcher, self._vocabulary.size)

    def _compile(self, wanted: ResponseFormat) -> llguidance.LLMatcher:
        grammar = _grammar(wanted)
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = _matcher(self._tokenizer, grammar)
            if matcher.is_error():
                raise _refusal(wanted, _reason(matcher))
            self._compiled[grammar] = matcher
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > GRAMMARS_CACHED_MAX:
            self._compiled.popitem(last=False)
        return matcher

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        if not self._vocabulary.eos_ids:
            raise InvalidParams("This model has no end token: structured output is not possible.")
        wrapper = llguidance.TokenizerWrapper(_Tokens(self._vocabulary))
        return llguidance.LLTokenizer(wrapper, self._vocabulary.size, sorted(self._vocabulary.eos_ids))


class _Tokens:
    """A vocabulary in the shape that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = min(vocabulary.eos_ids)
        self.bos_token_id = vocabulary.bos_id
        self.special_token_ids = sorted(vocabulary.special_ids)
        self.tokens = [vocabulary.token_bytes(token) for token in range(vocabulary.size)]

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return self._vocabulary.encode(text, special=False)


def _matcher(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """Compile a grammar and check that some token may begin; the matcher returned holds the error."""
    limits = llguidance.LLParserLimits(max_items_in_row=ROW_ITEMS_MAX, step_max_items=STEP_ITEMS_MAX)
    usual = threading.stack_size(COMPILER_STACK_BYTES)
    try:
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(llguidance.LLMatcher, tokenizer, grammar, log_level=0, limits=limits)
    finally:
        threading.stack_size(usual)
    matcher = compiled.result()
    matcher.compute_bitmask()
    return matcher


def _reason(matcher: llguidance.LLMatcher) -> str:
    """Return why a matcher failed, without the state that llguidance appends."""
    reason = matcher.get_error().partition("\n<")[0]
    return "no text fits it" if reason == "NoExtensionBias" else reason


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
