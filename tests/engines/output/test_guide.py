"""Guides: only what the schema, pattern or grammar allows, to the end and no further."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engines.vocabularies import EOS, EOT, USER, ByteVocabulary
from worker.engines.output import guide as module
from worker.engines.output.guide import FORMS_KEPT_MAX, Guide, Guides
from worker.errors import InvalidParams
from worker.requests import ResponseFormat

VOCABULARY = ByteVocabulary((b"true", b'{"', b"12", "é".encode()))
GUIDES = Guides(VOCABULARY)
PERSON: dict[str, object] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def regex(pattern: str) -> ResponseFormat:
    return ResponseFormat(type="regex", pattern=pattern)


def guide(wanted: ResponseFormat, generated: tuple[int, ...] = ()) -> Guide:
    made = GUIDES.guide(wanted, generated)
    assert made is not None
    return made


def follow(made: Guide, text: str) -> int:
    """How many tokens of the text were taken."""
    ids = VOCABULARY.encode(text, special=False)
    return next((n for n, token in enumerate(ids) if not made.accept(token)), len(ids))


def test_plain_text_has_no_guide() -> None:
    assert GUIDES.guide(ResponseFormat()) is None


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (regex("[a-c]+!"), "abcab!"),
        (regex("(true|false) \\d{3}"), "true 123"),
        (regex("é+\\."), "éé."),
        (ResponseFormat(type="json_schema", schema=PERSON), '{"name":"Zoé","age":41}'),
        (ResponseFormat(type="json_object"), '{"a":[1,true,{"b":null}],"c":"x"}'),
        (ResponseFormat(type="grammar", grammar='start: "(" inner ")"\ninner: start | "x"'), "((x))"),
    ],
)
def test_what_fits_is_taken_and_then_only_an_end_token_is_left(wanted: ResponseFormat, text: str) -> None:
    made = guide(wanted)
    assert not made.complete
    assert follow(made, text) == len(VOCABULARY.encode(text, special=False))
    assert made.complete
    assert np.flatnonzero(made.allowed()).tolist() == [EOS, EOT]


def test_a_refused_token_changes_nothing() -> None:
    made = guide(regex("ab"))
    before = made.allowed()
    assert not made.accept(ord("b"))
    assert not made.accept(USER)
    assert not made.accept(EOS)
    assert made.allowed().tolist() == before.tolist() and np.flatnonzero(before).tolist() == [ord("a")]
    assert follow(made, "ab") == 2


def test_what_the_mask_allows_is_accepted() -> None:
    ids = VOCABULARY.encode('{"name":"é', special=False)
    wanted = ResponseFormat(type="json_schema", schema=PERSON)
    for length in range(len(ids) + 1):
        allowed = np.flatnonzero(guide(wanted, tuple(ids[:length])).allowed())
        assert all(guide(wanted, tuple(ids[:length])).accept(int(token)) for token in allowed)
        # Where the text is forced, the mask has the tokens of its usual tokenization alone.
        assert length == len(ids) or ids[length] in allowed


def test_where_the_text_may_end_an_end_token_completes_it() -> None:
    for end in (EOS, EOT):
        made = guide(regex("a+"))
        follow(made, "aa")
        assert not made.complete and made.accept(end) and made.complete


@pytest.mark.parametrize("text", ["", '{"', '{"a":', '{"a":1'])
def test_json_has_no_white_space_to_get_lost_in(text: str) -> None:
    made = guide(ResponseFormat(type="json_object"))
    assert follow(made, text) == len(VOCABULARY.encode(text, special=False))
    if not text.endswith('"'):  # where a string begins, a space is part of it
        assert not made.accept(ord(" ")) and not made.accept(ord("\n"))


def test_a_guide_goes_on_after_the_tokens_of_an_earlier_attempt() -> None:
    ids = tuple(VOCABULARY.encode('{"name":"A","age":12', special=False))
    for length in range(len(ids)):
        made = guide(ResponseFormat(type="json_schema", schema=PERSON), ids[:length])
        assert all(made.accept(token) for token in (*ids[length:], ord("}"))) and made.complete


def test_guides_of_one_grammar_are_independent() -> None:
    first, second = guide(regex("ab")), guide(regex("ab"))
    assert first.accept(ord("a")) and second.accept(ord("a")) and first.accept(ord("b"))
    assert first.complete and not second.complete


@pytest.mark.parametrize(
    ("wanted", "pointer", "reason"),
    [
        (ResponseFormat(type="json_schema", schema={"type": 5}), "/response_format/schema", "type"),
        (ResponseFormat(type="json_schema", schema={"$ref": "#/nope"}), "/response_format/schema", "nope"),
        (
            ResponseFormat(type="json_schema", schema={"type": "string", "format": "x?"}),
            "/response_format/schema",
            "x?",
        ),
        (ResponseFormat(type="json_schema"), "/response_format/schema", "required"),
        (regex("(a"), "/response_format/pattern", "unclosed"),
        (regex("a(?=b)"), "/response_format/pattern", "look"),
        (ResponseFormat(type="regex"), "/response_format/pattern", "required"),
        (ResponseFormat(type="grammar", grammar="start: x"), "/response_format/grammar", "unknown name"),
        (ResponseFormat(type="grammar", grammar=""), "/response_format/grammar", "Empty"),
        (ResponseFormat(type="grammar"), "/response_format/grammar", "required"),
        # These are sound, but no text fits them: better said now than when the first token is wanted.
        (regex(r"a[^\s\S]"), "/response_format/pattern", "no text"),
        (ResponseFormat(type="grammar", grammar='start: start "a"'), "/response_format/grammar", "no text"),
        (ResponseFormat(type="json_schema", schema={"$ref": "#"}), "/response_format/schema", "no text"),
    ],
)
def test_a_bad_one_is_refused_with_its_place(wanted: ResponseFormat, pointer: str, reason: str) -> None:
    with pytest.raises(InvalidParams, match=reason.replace("?", "\\?")) as caught:
        GUIDES.guide(wanted)
    assert [error.pointer for error in caught.value.errors] == [pointer]


CHAIN = 4000
"""Links in which a compiler that recurses on a thread's usual stack ends the whole process."""


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (
            ResponseFormat(
                type="grammar",
                grammar="start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(CHAIN)) + f'\nr{CHAIN}: "a"',
            ),
            "a",
        ),
        (
            ResponseFormat(
                type="json_schema",
                schema={
                    "$ref": "#/$defs/0",
                    "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(CHAIN)}
                    | {str(CHAIN): {"type": "null"}},
                },
            ),
            "null",
        ),
    ],
    ids=["rules", "references"],
)
def test_a_long_chain_of_rules_or_references_is_followed_to_its_end(wanted: ResponseFormat, text: str) -> None:
    made = guide(wanted)
    assert follow(made, text) == len(text) and made.complete


def test_where_the_text_came_to_a_dead_end_the_reason_is_one_short_sentence() -> None:
    made = guide(regex("(a?){5000}a{5000}"))
    with pytest.raises(InvalidParams, match="too complex") as caught:
        while made.accept(ord("a")):
            made.allowed()
    assert [error.pointer for error in caught.value.errors] == ["/response_format/pattern"]


def test_generated_tokens_that_do_not_follow_are_refused() -> None:
    with pytest.raises(InvalidParams, match="do not follow"):
        GUIDES.guide(regex("ab"), (ord("b"),))


def test_a_model_without_an_end_token_cannot_have_a_guide() -> None:
    vocabulary = ByteVocabulary()
    vocabulary.eos_ids = frozenset()
    with pytest.raises(InvalidParams, match="no end token"):
        Guides(vocabulary).guide(regex("a"))


def test_a_grammar_that_grows_with_every_token_breaks_with_a_reason() -> None:
    made = guide(ResponseFormat(type="grammar", grammar='start: (/a/ | "a" start | start start | start start start)+'))
    with pytest.raises(InvalidParams, match=r"Current row has \d+ items"):
        for _ in range(400):
            made.allowed()
            made.accept(ord("a"))


def test_an_object_of_many_optional_properties_fits() -> None:
    schema: dict[str, object] = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(200)}}
    made = guide(ResponseFormat(type="json_schema", schema=schema))
    follow(made, '{"p7":"x","p150":"y"}')
    assert made.complete


def test_a_form_that_comes_to_a_dead_end_is_the_clients_mistake() -> None:
    # The compiler joins a named property and a pattern that matches it into one that cannot be ended.
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 5}},
        "required": ["score"],
        "additionalProperties": False,
        "patternProperties": {"^score$": {"type": "integer"}},
    }
    made = guide(ResponseFormat(type="json_schema", schema=schema))
    assert follow(made, '{"score":3,') == len(VOCABULARY.encode('{"score":3,', special=False))
    with pytest.raises(InvalidParams, match="no text fits it") as caught:
        made.allowed()
    assert [error.pointer for error in caught.value.errors] == ["/response_format/schema"]


@pytest.mark.parametrize(("grammar", "ids"), [('start: "a" <user>', (97, USER)), ("start: <user> /b+/", (USER, 98))])
def test_a_grammar_may_name_a_control_token(grammar: str, ids: tuple[int, ...]) -> None:
    made = guide(ResponseFormat(type="grammar", grammar=grammar))
    assert all(made.accept(token) for token in ids)


def test_text_is_no_control_token() -> None:
    made = guide(ResponseFormat(type="grammar", grammar='start: "a<user>"'))
    assert not made.accept(USER) and follow(made, "a<user>") == 7
    assert USER not in np.flatnonzero(guide(regex("(.|\n)+")).allowed())


def test_a_control_token_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(InvalidParams, match=r"unknown special token.*<nope>"):
        guide(ResponseFormat(type="grammar", grammar="start: <nope>"))


def test_no_panic_of_the_library_reaches_a_client() -> None:
    class Nameless(ByteVocabulary):
        """Its control tokens have no names, and the library panics where it looks for one."""

        def __init__(self) -> None:
            super().__init__()
            self.special_names = frozenset()

    with pytest.raises(InvalidParams) as caught:
        Guides(Nameless()).guide(ResponseFormat(type="grammar", grammar="start: <user>"))
    assert "panic" not in caught.value.detail and "cannot be compiled" in caught.value.detail


# ---- limits: of a form that is tried, of masks, of what is kept ------------------------------------------------------


def test_a_form_is_tried_and_then_ready() -> None:
    guides = Guides(VOCABULARY)
    assert guides.ready(ResponseFormat()) and not guides.ready(regex("ab"))
    guides.try_out(regex("ab"), 1000, 1000)
    assert guides.ready(regex("ab")) and not guides.ready(regex("abc"))


@pytest.mark.parametrize(("limits", "words"), [((-1, 1000), "to compile"), ((1000, -1), "per token")])
def test_a_form_over_a_limit_is_refused_each_time_it_is_tried(limits: tuple[int, int], words: str) -> None:
    guides = Guides(VOCABULARY)
    for _ in range(2):
        with pytest.raises(InvalidParams, match=f"ms {words}, and -1 ms are allowed") as caught:
            guides.try_out(regex("ab"), *limits)
        assert [error.pointer for error in caught.value.errors] == ["/response_format/pattern"]
        assert not guides.ready(regex("ab"))


def test_a_bad_form_is_refused_when_it_is_tried() -> None:
    with pytest.raises(InvalidParams, match="unclosed"):
        Guides(VOCABULARY).try_out(regex("(a"), 1000, 1000)


def test_a_second_mask_that_takes_too_long_ends_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    made = guide(regex("a+"))
    monkeypatch.setattr(module, "MASK_MS_MAX", -1)
    made.allowed()
    with pytest.raises(InvalidParams, match="per token"):
        made.allowed()


def test_forms_compile_beside_and_one_compilation_serves_all_who_ask() -> None:
    guides = Guides(VOCABULARY)
    futures = [guides.compile_beside(regex("(a|b){9}c")) for _ in range(3)]
    futures[0].cancel()
    assert [future.result(timeout=30) for future in futures[1:]] == [None, None]
    assert guides.ready(regex("(a|b){9}c"))
    with pytest.raises(InvalidParams, match="unclosed"):
        guides.compile_beside(regex("(a")).result(timeout=30)


def test_a_limited_number_of_forms_is_kept() -> None:
    guides = Guides(VOCABULARY)
    for number in range(FORMS_KEPT_MAX + 5):
        guides.guide(regex(f"x{number}"))
        guides.guide(regex("x0"))
    kept = [number for number in range(FORMS_KEPT_MAX + 5) if guides.ready(regex(f"x{number}"))]
    assert kept == [0, *range(6, FORMS_KEPT_MAX + 5)]


def test_forms_are_kept_for_a_limited_time_of_compiling_but_for_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMS_KEPT_MS_MAX", 0)
    guides = Guides(VOCABULARY)
    for pattern in "abc":
        assert guides.guide(regex(pattern)) is not None
        assert [guides.ready(regex(other)) for other in "abc"] == [other == pattern for other in "abc"]


def test_a_big_form_is_freed_in_the_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BIG_MS", -1)
    freed: list[object] = []
    guides = Guides(VOCABULARY)
    monkeypatch.setattr(guides._beside, "free", freed.append)
    made = guides.guide(regex("ab"))
    matcher = made._matcher if made is not None else None
    del made
    assert freed == [matcher] and matcher is not None


# ---- forms as people and their libraries write them ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "A"}, "null"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}, "[1,2]"),
        ({"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}$"}, '"AB12"'),
        ({"type": "string", "format": "date"}, '"2024-02-29"'),
        ({"enum": ["größe", "漢字", "👍"]}, '"漢字"'),
        ({"const": {"a": [1]}}, '{"a":[1]}'),
        ({"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 20}, "15"),
        ({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "boolean"}]}, "true"),
        ({"type": ["boolean", "null"]}, "null"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$id": "x", "type": "boolean"}, "false"),
        ({"type": "integer", "minimum": 0, "maximum": 18446744073709551616}, "7"),
    ],
)
def test_schemas_as_libraries_write_them(schema: dict[str, object], text: str) -> None:
    wanted = ResponseFormat(type="json_schema", schema=schema)
    made = guide(wanted)
    assert follow(made, text) == len(VOCABULARY.encode(text, special=False))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"not": {"type": "string"}},
        {"if": {"type": "string"}, "then": {"maxLength": 2}},
        {"$ref": "https://example.com/x.json"},
        {"type": "string", "format": "phone-number"},
        {"type": "integer", "minimum": 2**64},
        {"const": "\ud800"},
        {"enum": []},
    ],
)
def test_schemas_that_cannot_be_kept_are_refused_in_words(schema: dict[str, object]) -> None:
    with pytest.raises(InvalidParams) as caught:
        guide(ResponseFormat(type="json_schema", schema=schema))
    assert [error.pointer for error in caught.value.errors] == ["/response_format/schema"]
    assert not {"panic", "Traceback"} & set(caught.value.detail.split())
