"""How text is cut into words before byte-level BPE merges within each: the rules that GGUF names `tokenizer.ggml.pre`.

The names and their meanings are llama.cpp's (src/llama-vocab.cpp); the expressions are those of the tokenizers that the
models were trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import regex

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """Cuts text into words: each expression in turn isolates its matches within the words of the one before.

    `whole_words`: a word that is a token becomes that token, whatever its merges. `add_bos` is the default for models
    that do not specify it.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False

    def split(self, text: str) -> list[str]:
        """Return the words, whose concatenation is the text."""
        words = [text] if text else []
        for pattern in self._patterns:
            words = [piece for word in words for piece in _isolated(pattern, word)]
        return words

    @cached_property
    def _patterns(self) -> tuple[regex.Pattern[str], ...]:
        return tuple(regex.compile(expression) for expression in self.expressions)


def _isolated(pattern: regex.Pattern[str], text: str) -> Iterator[str]:
    """Yield the matches and the text between them, in order."""
    end = 0
    for match in pattern.finditer(text):
        start = match.start()
        if start > end:
            yield text[end:start]
        end = match.end()
        if end > start:
            yield text[start:end]
    if end < len(text):
        yield text[end:]


_LLAMA3 = PreTokenizer((rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), whole_words=True, add_bos=True)
_GLM4 = PreTokenizer(_LLAMA3.expressions)
_QWEN2 = PreTokenizer((rf"{_WORDS}|\p{{N}}|{_REST}",))
_GPT = PreTokenizer((_GPT2,))
_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_TEKKEN = PreTokenizer((rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}",), whole_words=True, add_bos=True)
_GPT4O = PreTokenizer(
    (
        rf"{_CASED[0]}(?i:'s|'t|'re|'ve|'m|'ll|'d)?|{_CASED[1]}(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}|{_CASED_REST}",
    )
)
_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _DEFAULT,
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _GLM4),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"), _QWEN2),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "mellum"), _GPT),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
"""GGUF's name -> rule. Models without a name get "default"."""
