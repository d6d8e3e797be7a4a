"""The reader: what goes into the model, and what is refused before it takes any room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines.vocabularies import BOS, EOT, USER, ByteVocabulary
from worker.engines.base import Bounds, Generation, Prepared, pack_ids
from worker.engines.prompt.chat import ChatTemplate
from worker.engines.prompt.reader import ModelReader
from worker.errors import InvalidParams
from worker.requests import Message, Prompt, ResponseFormat, Sampling

TEMPLATE = "{{ bos_token }}{% for m in messages %}<user>{{ m.content }}{% endfor %}<eot>"


def prepared(
    prompt: Prompt,
    sampling: Sampling | None = None,
    *,
    generated: tuple[int, ...] = (),
    max_tokens: int = 1000,
    context: int = 64,
    vocabulary: ByteVocabulary | None = None,
    bounds: Bounds | None = None,
    prompt_ids: bytes = b"",
) -> Prepared:
    vocabulary = vocabulary or ByteVocabulary()
    generation = Generation(
        lease="g",
        prompt=prompt,
        sampling=sampling or Sampling(),
        max_tokens=max_tokens,
        generated=generated,
        prompt_ids=prompt_ids,
    )
    bounds = bounds or Bounds(context, context, vocabulary.size)
    return ModelReader(vocabulary, ChatTemplate(TEMPLATE, bos_token="<bos>")).prepare(generation, bounds)


def text(words: str) -> Prompt:
    return Prompt(text=words)


def refused(prompt: Prompt, sampling: Sampling | None = None, **options: object) -> tuple[str, str]:
    with pytest.raises(InvalidParams) as caught:
        prepared(prompt, sampling, **options)  # type: ignore[arg-type]
    (error,) = caught.value.errors
    return error.pointer, error.detail


def test_text_stands_as_it_is_after_the_begin_token() -> None:
    assert prepared(text("hé")).prompt_ids == (BOS, 104, 0xC3, 0xA9)
    assert prepared(text("a<eot>")).prompt_ids == (BOS, 97, EOT)
    assert prepared(text("<bos>a")).prompt_ids == (BOS, 97)
    assert prepared(text("a"), vocabulary=ByteVocabulary(add_bos=False)).prompt_ids == (97,)


def test_messages_go_through_the_template_which_brings_its_own_begin_token() -> None:
    prompt = Prompt(messages=(Message("user", "a"), Message("user", "b")), text="unused")
    assert prepared(prompt).prompt_ids == (BOS, USER, 97, USER, 98, EOT)


def test_what_a_user_writes_is_text_even_where_it_spells_control_tokens() -> None:
    words = "<user><<bos>"
    assert prepared(Prompt(messages=(Message("user", words),))).prompt_ids == (BOS, USER, *words.encode(), EOT)
    # The application itself may spell them: in what the system says, and in a prompt without messages.
    assert prepared(Prompt(messages=(Message("system", "<eot>"),))).prompt_ids == (BOS, USER, EOT, EOT)
    assert prepared(text("<eot>")).prompt_ids == (BOS, EOT)


def test_the_budget_is_cut_to_the_context() -> None:
    assert prepared(text("a" * 60)).max_tokens == 3
    assert prepared(text("a" * 60)).tokens_max == 64
    assert prepared(text("a"), max_tokens=5).max_tokens == 5


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused_with_both_numbers() -> None:
    assert prepared(text("a" * 62)).max_tokens == 1
    pointer, detail = refused(text("a" * 63))
    assert pointer == "/prompt" and "64 tokens" in detail and "holds 64" in detail
    assert refused(Prompt(messages=(Message("user", "a" * 80),)))[0] == "/messages"


def test_an_enormous_prompt_is_refused_before_it_is_tokenized() -> None:
    class Untouched(ByteVocabulary):
        def encode(self, text: str, *, special: bool) -> list[int]:
            raise AssertionError(f"tokenized {len(text)} characters, special={special}")

    pointer, detail = refused(text("é" * 1_000_000), vocabulary=Untouched())
    assert pointer == "/prompt" and "384 bytes" in detail and "64 tokens" in detail
    chat = Prompt(messages=(Message("user", "a" * 1_000_000),))
    assert refused(chat, vocabulary=Untouched()) == ("/messages", detail)


def test_an_empty_prompt_is_refused() -> None:
    assert refused(text("")) == ("/prompt", "must not be empty")


def test_a_lone_surrogate_is_replaced() -> None:
    assert prepared(text("a\ud800b")).prompt_ids == (BOS, 97, ord("?"), 98)
    assert prepared(Prompt(messages=(Message("user", "\udfff"),))).prompt_ids == (BOS, USER, ord("?"), EOT)


@pytest.mark.parametrize(
    ("sampling", "pointer"),
    [
        (Sampling(logit_bias={3: 1.0, 260: 1.0}), "/logit_bias/260"),
        (Sampling(logit_bias={-1: 1.0}), "/logit_bias/-1"),
        (Sampling(stop=("a", "")), "/stop/1"),
        (Sampling(response_format=ResponseFormat(type="json_schema", schema={"type": 1})), "/response_format/schema"),
        (Sampling(response_format=ResponseFormat(type="regex", pattern="(")), "/response_format/pattern"),
        (Sampling(response_format=ResponseFormat(type="grammar", grammar="x")), "/response_format/grammar"),
    ],
)
def test_settings_that_this_model_cannot_honour_are_refused(sampling: Sampling, pointer: str) -> None:
    assert refused(text("a"), sampling)[0] == pointer


def test_tokens_of_an_earlier_attempt_are_checked() -> None:
    assert prepared(text("a"), generated=(5, 6), max_tokens=3).generation.generated == (5, 6)
    assert refused(text("a"), generated=(5, 260))[0] == "/generated"
    assert refused(text("a"), generated=(5, 6), max_tokens=2)[0] == "/max_tokens"
    pattern = Sampling(response_format=ResponseFormat(type="regex", pattern="ab"))
    assert refused(text("a"), pattern, generated=(98,))[0] == "/response_format/pattern"


def test_a_broken_template_concerns_chat_alone() -> None:
    reader, bounds = ModelReader(ByteVocabulary(), ChatTemplate("{% nonsense %}")), Bounds(64, 64, 260)
    plain = Generation(lease="g", prompt=text("a"), sampling=Sampling(), max_tokens=1)
    assert reader.prepare(plain, bounds).prompt_ids == (BOS, 97)
    chat = Generation(lease="g", prompt=Prompt(messages=(Message("user", "a"),)), sampling=Sampling(), max_tokens=1)
    with pytest.raises(InvalidParams, match="chat template"):
        reader.prepare(chat, bounds)


def test_banned_strings_need_an_engine_that_can_take_tokens_back() -> None:
    banning = Sampling(banned_strings=("never",))
    assert refused(text("a"), banning)[0] == "/banned_strings"

    def prepare_here(sampling: Sampling) -> Prepared:
        return prepared(text("a"), sampling, bounds=Bounds(64, 64, 260, rewinds=True))

    assert prepare_here(banning).generation.sampling.banned_strings == ("never",)
    guided = ResponseFormat(type="regex", pattern="a")
    for wrong in (Sampling(banned_strings=("a", "")), Sampling(banned_strings=("a",), response_format=guided)):
        with pytest.raises(InvalidParams):
            prepare_here(wrong)


def test_the_last_token_is_taken_off_to_be_healed_if_asked() -> None:
    healing, vocabulary = Sampling(token_healing=True), ByteVocabulary((b"//", b"://", "本".encode()))
    assert prepared(text("http:"), vocabulary=vocabulary).healed == b""

    def healed(words: str | Prompt, **options: Any) -> tuple[tuple[int, ...], bytes]:
        prompt = text(words) if isinstance(words, str) else words
        result = prepared(prompt, healing, vocabulary=vocabulary, **options)
        return result.prompt_ids, result.healed

    assert healed("http:") == ((BOS, *b"http"), b":")
    assert healed(":") == ((BOS,), b":")
    assert healed("http") == ((BOS, *b"http"), b""), "no other token begins with a p"
    assert healed("http://") == ((BOS, *b"http", 261), b"")
    assert healed("a:<eot>") == ((BOS, *b"a:", EOT), b"")
    assert healed(Prompt(messages=(Message("user", "a:"),))) == ((BOS, USER, *b"a:", EOT), b"")
    # What an earlier attempt produced begins with the token that was chosen in its place.
    assert healed("http:", generated=(261, 97)) == ((BOS, *b"http"), b":")


def test_nothing_is_left_of_a_single_token_so_it_is_not_healed() -> None:
    vocabulary = ByteVocabulary((b"ab",), add_bos=False)
    assert prepared(text("a"), Sampling(token_healing=True), vocabulary=vocabulary).prompt_ids == (97,)


def test_a_healed_token_counts_as_output() -> None:
    healing, vocabulary = Sampling(token_healing=True), ByteVocabulary((b"ab",))
    whole = prepared(text("a" * 62), healing, vocabulary=vocabulary)
    assert (len(whole.prompt_ids), whole.max_tokens, whole.tokens_max) == (62, 2, 64)


def test_healing_and_structured_output_exclude_each_other() -> None:
    guided = ResponseFormat(type="regex", pattern="a")
    assert refused(text("a"), Sampling(token_healing=True, response_format=guided))[0] == "/token_healing"
    assert prepared(text("a"), Sampling(token_healing=False, response_format=guided)).prompt_ids == (BOS, 97)


# ---- ids that were read before, and the engine's bounds --------------------------------------------------------------


def test_the_prompt_itself_is_left_behind() -> None:
    read = prepared(Prompt(messages=(Message("user", "a"),)))
    assert (read.generation.prompt, read.generation.prompt_ids) == (Prompt(), b"")
    assert read.packed_prompt == pack_ids((BOS, USER, 97, EOT))


def test_a_prompt_that_was_read_before_is_not_read_again() -> None:
    again = prepared(Prompt(), prompt_ids=pack_ids((BOS, 97, EOT)))
    assert again == prepared(text("a<eot>"))
    healing, vocabulary = Sampling(token_healing=True), ByteVocabulary((b"://",))
    first = prepared(text("http:"), healing, vocabulary=vocabulary)
    assert first.prompt_ids == (BOS, *b"http")
    assert prepared(Prompt(), healing, vocabulary=vocabulary, prompt_ids=first.packed_prompt) == first


def test_ids_that_were_read_before_must_be_tokens() -> None:
    pointer, detail = refused(Prompt(), prompt_ids=pack_ids((BOS, 260)))
    assert pointer == "/prompt" and "0 to 259" in detail


def test_what_needs_more_than_the_whole_kv_cache_is_refused_with_both_numbers() -> None:
    bounds = Bounds(context_tokens=64, kv_tokens_total=32, vocab_size=260)
    assert prepared(text("a" * 15), max_tokens=16, bounds=bounds).tokens_max == 32
    with pytest.raises(InvalidParams, match=r"need 33 tokens of KV cache.* has 32 in all"):
        prepared(text("a" * 16), max_tokens=16, bounds=bounds)


def test_a_model_whose_logits_are_narrower_than_its_vocabulary_has_fewer_tokens() -> None:
    bounds = Bounds(64, 64, vocab_size=258)
    with pytest.raises(InvalidParams, match="0 to 257"):
        prepared(text("a"), Sampling(logit_bias={258: 1.0}), bounds=bounds)


class CountingVocabulary(ByteVocabulary):
    """Counts the texts that it has tokenized."""

    count = 0

    def encode(self, text: str, *, special: bool) -> list[int]:
        self.count += 1
        return super().encode(text, special=special)


def read_twice(template: str, prompt: Prompt) -> int:
    """Return how many texts are tokenized when a prompt comes twice."""
    vocabulary, bounds = CountingVocabulary(), Bounds(64, 64, 260)
    reader = ModelReader(vocabulary, ChatTemplate(template))
    generation = Generation(lease="g", prompt=prompt, sampling=Sampling(), max_tokens=1)
    assert reader.prepare(generation, bounds) == reader.prepare(generation, bounds)
    return vocabulary.count


def test_the_choices_of_one_job_are_tokenized_once() -> None:
    chat = Prompt(messages=(Message("user", "a"),))
    assert read_twice(TEMPLATE, text("a")) == 1
    assert read_twice(TEMPLATE, chat) == 1
    # It would be another prompt after midnight.
    assert read_twice(TEMPLATE + "{{ strftime_now('%d') }}", chat) == 2
    assert read_twice(TEMPLATE + "{{ strftime_now('%d') }}", text("a")) == 1
