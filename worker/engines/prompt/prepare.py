"""From a request to token ids: render, tokenize, and refuse what this model cannot run, before room is reserved."""

from __future__ import annotations

from worker.engines.base import Generation, Prepared
from worker.engines.output.guide import Guides
from worker.engines.prompt.chat import ChatTemplate
from worker.engines.prompt.quoting import quoting
from worker.engines.vocabulary import Vocabulary
from worker.errors import FieldError, InvalidParams


def prepare(
    generation: Generation,
    vocabulary: Vocabulary,
    chat: ChatTemplate,
    guides: Guides,
    context_tokens: int,
    *,
    rewinds: bool = False,
) -> Prepared:
    """Return the generation with its prompt's token ids and a budget that fits `context_tokens`.

    `rewinds`: the engine can remove tokens again, as banned strings need. Raises InvalidParams for an empty prompt, one
    that leaves no room for a token, ids of `logit_bias` or `generated` out of range, an empty stop or banned string,
    banned strings or token healing that are not supported here, a bad schema, pattern or grammar, and a `generated`
    that is complete already.
    """
    _check_sampling(generation, vocabulary)
    _check_bans(generation, rewinds)
    _check_healing(generation)
    guides.guide(generation.sampling.response_format, generation.generated)
    pointer = "/messages" if generation.prompt.messages else "/prompt"
    ids = _tokenize(_texts(generation, vocabulary, chat, context_tokens, pointer), vocabulary)
    if not ids:
        raise _refusal(pointer, "must not be empty")
    healed = guides.healing.healed(ids) if generation.sampling.token_healing else b""
    if healed:
        del ids[-1]
    if len(ids) >= context_tokens:
        raise _refusal(pointer, f"has {len(ids)} tokens, but the context holds {context_tokens}, output included")
    max_tokens = min(generation.max_tokens, context_tokens - len(ids))
    if len(generation.generated) >= max_tokens:
        raise _refusal("/max_tokens", f"must be above {len(generation.generated)}, the tokens generated so far")
    return Prepared(generation, tuple(ids), max_tokens, healed=healed)


def _texts(
    generation: Generation, vocabulary: Vocabulary, chat: ChatTemplate, context_tokens: int, pointer: str
) -> list[str]:
    """Return the prompt's text, cut where a message spells a control token: each piece is tokenized on its own.

    Refuses a text of more bytes than can fit, before the work of tokenizing it.
    """
    bytes_max = context_tokens * vocabulary.token_text_max
    prompt = generation.prompt
    if prompt.messages:
        messages, mark = quoting(vocabulary.special_names).mark(prompt.messages)
        text = chat.render(messages, bytes_max)
    else:
        text, mark = prompt.text, None
    size = len(text.encode("utf-8", "replace"))
    if size > bytes_max:
        raise _refusal(pointer, f"has more than {bytes_max} bytes, but the context holds {context_tokens} tokens")
    return [text] if mark is None else text.split(mark)


def _tokenize(texts: list[str], vocabulary: Vocabulary) -> list[int]:
    # A lone surrogate, which JSON can carry, cannot be encoded by a tokenizer.
    whole = [text.encode("utf-8", "replace").decode() for text in texts if text]
    if not whole:
        return []
    ids = [token for text in whole for token in vocabulary.encode(text, special=True)]
    if vocabulary.add_bos and vocabulary.bos_id is not None and ids[:1] != [vocabulary.bos_id]:
        return [vocabulary.bos_id, *ids]
    return ids


def _check_sampling(generation: Generation, vocabulary: Vocabulary) -> None:
    sampling = generation.sampling
    for token in sampling.logit_bias:
        if not 0 <= token < vocabulary.size:
            raise _refusal(f"/logit_bias/{token}", f"is no token: ids are 0 to {vocabulary.size - 1}")
    for number, stop in enumerate(sampling.stop):
        if not stop:
            raise _refusal(f"/stop/{number}", "must not be empty")
    if not all(0 <= token < vocabulary.size for token in generation.generated):
        raise _refusal("/generated", f"holds an id that is no token: ids are 0 to {vocabulary.size - 1}")


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


def _refusal(pointer: str, detail: str) -> InvalidParams:
    # A prompt may have become a conversation of one message: its author need not know.
    subject = "The prompt" if pointer in ("/prompt", "/messages") else pointer[1:]
    return InvalidParams(f"{subject} {detail}.", errors=(FieldError(pointer, detail),))
