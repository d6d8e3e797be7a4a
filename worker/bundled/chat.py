"""The conversation format and the tokenizer: byte-level BPE with one token per digit, and the chat template.

`train_tokenizer` and `render` are used when the model is made; nothing here is needed to run it, because the GGUF file
carries vocabulary and template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from worker.bundled.corpus import Conversation

BEGIN, END, USER, ASSISTANT, SYSTEM, PAD = range(6)
SPECIAL = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")
VOCABULARY = 1280
# The pre-tokenizer that GGUF calls "qwen2": every digit is a word of its own.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + (message['content'] | trim) + eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def with_rules(model: models.BPE) -> Tokenizer:
    """Return the model with the pre-tokenizer and the decoder around it."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer of VOCABULARY tokens; the special tokens come first, then all 256 bytes."""
    tokenizer = with_rules(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_tokenizer(tokens: Sequence[str], merges: Sequence[str]) -> Tokenizer:
    """Return the tokenizer of a vocabulary in the order of ids and its merges, each as "left right"."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = with_rules(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def merges(tokenizer: Tokenizer) -> list[str]:
    """Return the merges in order, each as "left right"."""
    rows = json.loads(tokenizer.to_str())["model"]["merges"]
    return [row if isinstance(row, str) else " ".join(row) for row in rows]


def render(tokenizer: Tokenizer, talk: Conversation) -> tuple[list[int], list[float]]:
    """Token ids of a conversation and, for each, what it counts in training.

    0 for the user's text, 1 for free answers and 2 for exact answers, end of turn included. The ids equal those of
    the rendered chat template.
    """
    ids, weights = [BEGIN], [0.0]

    def add(role: int, text: str, weight: float, end: tuple[int, ...] = (END,)) -> None:
        body = [*tokenizer.encode(text.strip()).ids, *end]
        ids.extend([role, *body])
        weights.extend([0.0, *[weight] * len(body)])

    if talk.system is not None:
        add(SYSTEM, talk.system, 0.0)
    for turn in talk.turns:
        add(USER, turn.user, 0.0)
        add(ASSISTANT, turn.answer, 2.0 if turn.exact else 1.0, () if turn.cut else (END,))
    return ids, weights
