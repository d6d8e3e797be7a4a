"""From a request to token ids: render, tokenize, and refuse what this model cannot run, before room is reserved."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from worker.engines.base import Bounds, Generation, Prepared, unpack_ids
from worker.engines.output.guide import Guides, digest
from worker.engines.prompt.chat import ChatTemplate
from worker.engines.prompt.quoting import quoting
from worker.engines.vocabulary import Continuation, Vocabulary
from worker.errors import FieldError, InvalidParams
from worker.requests import Prompt, ResponseFormat

PROMPTS_KEPT_MAX = 8
"""Prompts whose ids are kept: the choices of one job, and works that are submitted again, bring the same one."""


class ModelReader:
    """The reader port, see `worker.engines.base.Reader`, over a model's vocabulary and chat template.

    Engines make their sequences from its `vocabulary` and `guides`.
    """

    def __init__(self, vocabulary: Vocabulary, chat: ChatTemplate) -> None:
        self.vocabulary = vocabulary
        self._continuation = Continuation(vocabulary)
        self.guides = Guides(vocabulary)
        self._chat = chat
        self._kept: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template of its own."""
        return self._chat.own

    def prepare(self, generation: Generation, bounds: Bounds) -> Prepared:
        """Return the generation with its prompt's token ids and a budget that fits the context.

        Raises InvalidParams for an empty prompt, one that leaves no room for a token, ids of `logit_bias` or
        `generated` out of range, an empty stop or banned string, banned strings or token healing that are not supported
        here, a bad schema, pattern or grammar, a need of more KV cache than there is, and a `generated` that is
        complete already.
        """
        _check_sampling(generation, min(bounds.vocab_size, self.vocabulary.size))
        _check_bans(generation, bounds.rewinds)
        _check_healing(generation)
        self.guides.guide(generation.sampling.response_format, generation.generated)
        pointer, context_tokens = _pointer(generation.prompt), bounds.context_tokens
        ids = unpack_ids(generation.prompt_ids) or self._read(generation.prompt, context_tokens)
        if generation.prompt_ids and not 0 <= min(ids) <= max(ids) < bounds.vocab_size:
            raise _refusal(pointer, f"has an id that is no token: ids are 0 to {bounds.vocab_size - 1}")
        if not ids:
            raise _refusal(pointer, "must not be empty")
        healed = self.guides.healing.healed(list(ids)) if generation.sampling.token_healing else b""
        ids, healed_ids = (ids[:-1], ids[-1:]) if healed else (ids, ())
        if len(ids) >= context_tokens:
            raise _refusal(pointer, f"has {len(ids)} tokens, but the context holds {context_tokens}, output included")
        max_tokens = min(generation.max_tokens, context_tokens - len(ids))
        if len(generation.generated) >= max_tokens:
            raise _refusal("/max_tokens", f"must be above {len(generation.generated)}, the tokens generated so far")
        read = msgspec.structs.replace(generation, prompt=Prompt(), prompt_ids=b"")
        prepared = Prepared(read, ids, max_tokens, healed=healed, healed_ids=healed_ids)
        _check_size(prepared, bounds)
        return prepared

    def try_form(self, wanted: ResponseFormat, compile_ms_max: float, mask_ms_max: float) -> None:
        """Compile a form and compute a mask. Raises InvalidParams for one that is wrong, or needs longer than that."""
        self.guides.try_out(wanted, compile_ms_max, mask_ms_max)

    def try_template(self) -> None:
        """Render a small conversation. Raises ModelError for a chat template that cannot be compiled, or fails."""
        self._chat.try_out()

    def warm_up(self) -> None:
        """Do ahead what the first form would wait for. Starts no thread, so the process can be forked afterwards."""
        self.guides.warm_up()

    def _read(self, prompt: Prompt, context_tokens: int) -> tuple[int, ...]:
        """Return the ids of a prompt, which may have been read a moment ago."""
        key = digest([context_tokens, prompt])
        ids = self._kept.pop(key, None)
        if ids is None:
            ids = tuple(self._tokenize(self._texts(prompt, context_tokens)))
        # A template that prints the date would give other ids tomorrow.
        if not (prompt.messages and self._chat.dated):
            self._kept[key] = ids
        if len(self._kept) > PROMPTS_KEPT_MAX:
            self._kept.popitem(last=False)
        return ids

    def _texts(self, prompt: Prompt, context_tokens: int) -> list[str]:
        """Return the prompt's text, cut where a message spells a control token: each piece is tokenized on its own.

        Refuses a text of more bytes than can fit, before the work of tokenizing it.
        """
        bytes_max = context_tokens * self.vocabulary.token_text_max
        if prompt.messages:
            messages, mark = quoting(self.vocabulary.special_names).mark(prompt.messages)
            text = self._chat.render(messages, bytes_max)
        else:
            text, mark = prompt.text, None
        size = len(text.encode("utf-8", "replace"))
        if size > bytes_max:
            detail = f"has more than {bytes_max} bytes, but the context holds {context_tokens} tokens"
            raise _refusal(_pointer(prompt), detail)
        return [text] if mark is None else text.split(mark)

    def _tokenize(self, texts: list[str]) -> list[int]:
        # A lone surrogate, which JSON can carry, cannot be encoded by a tokenizer.
        whole = [text.encode("utf-8", "replace").decode() for text in texts if text]
        if not whole:
            return []
        vocabulary, first = self.vocabulary, whole.pop(0)
        ids = list(vocabulary.encode(first, special=True))
        for text in whole:
            ids += self._continuation.encode(text, special=True)
        if vocabulary.add_bos and vocabulary.bos_id is not None and ids[:1] != [vocabulary.bos_id]:
            return [vocabulary.bos_id, *ids]
        return ids


def _check_sampling(generation: Generation, vocab_size: int) -> None:
    sampling = generation.sampling
    for token in sampling.logit_bias:
        if not 0 <= token < vocab_size:
            raise _refusal(f"/logit_bias/{token}", f"is no token: ids are 0 to {vocab_size - 1}")
    for number, stop in enumerate(sampling.stop):
        if not stop:
            raise _refusal(f"/stop/{number}", "must not be empty")
    if not all(0 <= token < vocab_size for token in generation.generated):
        raise _refusal("/generated", f"holds an id that is no token: ids are 0 to {vocab_size - 1}")


def _check_bans(generation: Generation, rewinds: bool) -> None:
    banned = generation.sampling.banned_strings
    for number, text in enumerate(banned):
        if not text:
            raise _refusal(f"/banned_strings/{number}", "must not be empty")
    if banned and not rewinds:
        raise _refusal("/banned_strings", "need ExLlamaV2, without speculative decoding: leave them out here")
    if banned and generation.sampling.response_format.type != "text":
        raise _refusal("/banned_strings", "cannot be combined with response_format: put the limits into its pattern")


def _check_healing(generation: Generation) -> None:
    # A guide knows the output from its beginning, and that would begin in the middle of a token.
    if generation.sampling.token_healing and generation.sampling.response_format.type != "text":
        raise _refusal("/token_healing", "cannot be combined with response_format: leave one of them out")


def _check_size(prepared: Prepared, bounds: Bounds) -> None:
    if prepared.tokens_max > bounds.kv_tokens_total:
        raise InvalidParams(
            f"Prompt and max_tokens together need {prepared.tokens_max} tokens of KV cache; this engine has "
            f"{bounds.kv_tokens_total} in all."
        )


def _pointer(prompt: Prompt) -> str:
    return "/messages" if prompt.messages else "/prompt"


def _refusal(pointer: str, detail: str) -> InvalidParams:
    # A prompt may have become a conversation of one message: its author need not know.
    subject = "The prompt" if pointer in ("/prompt", "/messages") else pointer[1:]
    return InvalidParams(f"{subject} {detail}.", errors=(FieldError(pointer, detail),))
