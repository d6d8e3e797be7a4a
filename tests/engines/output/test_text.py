"""Text assembly: whatever the bytes and wherever they are cut, the pieces are the one-shot decoding."""

from __future__ import annotations

import codecs

from hypothesis import example, given
from hypothesis import strategies as st

from worker.engines.output.text import Piece, TextAssembler

# Emoji with joiners and skin tones, combining marks, CJK, right-to-left, stop-string material.
ALPHABET = ["a", "b", "ab", "\n", "é", "e\u0301", "한", "日本", "שלום", "👩‍👩‍👧", "👍🏽", "🏳️‍🌈", "\ufffd", "<|", "|>"]
INVALID = [b"\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xf5", b"\xc0\xaf"]

texts = st.lists(st.sampled_from(ALPHABET), max_size=12).map("".join)
data = st.lists(st.one_of(texts.map(str.encode), st.sampled_from(INVALID), st.binary(max_size=4)), max_size=8).map(
    b"".join
)
stops = st.lists(st.one_of(texts, st.text("ab", max_size=4)).filter(bool), max_size=3).map(tuple)


@st.composite
def tokens(draw: st.DrawFn) -> list[bytes]:
    """Bytes cut anywhere; cuts may coincide, which gives tokens without text."""
    whole = draw(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def one_shot(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition: decode everything, cut before the stop string that is complete first, of several the longest."""
    text = b"".join(pieces).decode(errors="replace")
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def run(assembler: TextAssembler, pieces: list[bytes]) -> list[Piece]:
    """Push until a stop string or the end; one entry per push, the last one being the end's."""
    out = []
    for piece in pieces:
        out.append(assembler.push(piece))
        if out[-1].stop is not None:
            return out
    return [*out, assembler.finish()]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@given(tokens(), stops)
@example([b"aaa", b"b"], ("ab", "aab"))
@example([b"\xf0\x9f", b"\x98", b"\x80x"], ("\U0001f600x",))
@example([b"a\xe2"], ("\ufffd",))
def test_the_pieces_are_the_one_shot_decoding(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    out = run(TextAssembler(stops), pieces)
    assert (text_of(out), out[-1].stop) == one_shot(pieces, stops)


@given(tokens(), stops)
def test_the_tokens_handed_out_are_those_whose_text_was_shown(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    out = run(TextAssembler(stops), pieces)
    count = 0
    for number, piece in enumerate(out[:-1]):
        count += piece.released
        assert decoded(b"".join(pieces[:count])) == (text_of(out[: number + 1]), b"")
        assert piece.released or not piece.text
    total = count + out[-1].released
    if out[-1].stop is None:
        assert total == len(pieces)
        return
    # All tokens up to the last whole character before the stop string, and none that reaches into it.
    prefixes = [decoded(b"".join(pieces[:count])) for count in range(len(pieces) + 1)]
    text = text_of(out)
    assert prefixes[total][1] == b"" and text.startswith(prefixes[total][0])
    assert all(pending or len(prefix) > len(text) for prefix, pending in prefixes[total + 1 : len(out) + 1])


def decoded(prefix: bytes) -> tuple[str, bytes]:
    """The characters that are certain after these bytes, and the bytes of one that is not complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(prefix), decoder.getstate()[0]


@given(tokens(), stops)
def test_a_new_assembler_after_any_piece_gives_the_same_rest(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    out = run(TextAssembler(stops), pieces)
    count = 0
    for number, piece in enumerate(out[:-1]):
        count += piece.released
        if piece.released:
            shown = b"".join(pieces[:count])
            for resumed in (TextAssembler(stops), TextAssembler(stops, shown)):
                rest = run(resumed, pieces[count:])
                assert (text_of(rest), rest[-1].stop) == (text_of(out[number + 1 :]), out[-1].stop)
                assert sum(p.released for p in rest) == sum(p.released for p in out[number + 1 :])


def test_half_a_character_is_withheld_with_its_tokens() -> None:
    assembler = TextAssembler()
    first, middle, last = (assembler.push(piece) for piece in (b"x\xf0", b"\x9f\x98", b"\x80"))
    assert (first, middle, last) == (Piece(0, ""), Piece(0, ""), Piece(3, "x\U0001f600"))


def test_half_a_character_at_the_end_becomes_the_replacement_character() -> None:
    assembler = TextAssembler()
    assert assembler.push(b"ok\xe2\x82") == Piece(0, "")
    assert assembler.finish() == Piece(1, "ok\ufffd")


def test_the_beginning_of_a_stop_string_is_withheld_and_comes_if_it_was_none() -> None:
    assembler = TextAssembler(("User:",))
    assert assembler.push(b"Hi\nUs") == Piece(0, "")
    assert assembler.push(b"er") == Piece(0, "")
    assert assembler.push(b"s") == Piece(3, "Hi\nUsers")
    assert assembler.push(b" Use") == Piece(0, "")
    assert assembler.finish() == Piece(1, " Use")


def test_a_token_that_reaches_into_the_stop_string_gives_text_and_no_id() -> None:
    assembler = TextAssembler(("END",))
    assert assembler.push(b"one") == Piece(1, "one")
    assert assembler.push(b" twoE") == Piece(0, "")
    assert assembler.push(b"ND of it") == Piece(0, " two", "END")


def test_a_run_that_could_always_begin_the_stop_string_is_not_withheld_for_ever() -> None:
    assembler = TextAssembler(("ab",))
    out = [assembler.push(b"a") for _ in range(100)]
    assert out == [Piece(0, ""), *[Piece(1, "a")] * 99]
    assert assembler.push(b"b") == Piece(0, "", "ab")


def test_of_several_stop_strings_the_first_complete_wins_and_then_the_longest() -> None:
    assert TextAssembler(("bc", "abcd")).push(b"abcd") == Piece(0, "a", "bc")
    assert TextAssembler(("c", "abc")).push(b"xabc") == Piece(0, "x", "abc")


def test_a_stop_string_that_began_in_shown_text_still_ends_a_resumed_sequence() -> None:
    # Only possible when the engine, resumed, draws another token than before.
    assembler = TextAssembler(("ab",), b"xa")
    assert assembler.push(b"b") == Piece(0, "", "ab")


def test_the_work_per_token_does_not_grow_with_what_is_withheld() -> None:
    # 100,000 tokens against a stop string of 20,000 characters would take hours if each looked at all of it.
    assembler = TextAssembler(("a" * 20_000 + "b",))
    shown = [assembler.push(b"a") for _ in range(100_000)]
    assert sum(piece.released for piece in shown) == 80_000
    # Characters that never end where a token does are withheld too.
    crossing = TextAssembler()
    assert crossing.push(b"\xe2\x82").released == 0
    assert all(crossing.push(b"\xac\xe2\x82").released == 0 for _ in range(50_000))
    assert crossing.push(b"\xac") == Piece(50_002, "€" * 50_001)


# ---- banned strings --------------------------------------------------------------------------------------------------


def keep(assembler: TextAssembler, tokens: list[bytes]) -> tuple[list[bytes], str, str | None]:
    """Push tokens, dropping those that are taken back; return those kept, the text, and the stop string."""
    kept: list[bytes] = []
    text, stop = "", None
    for token in tokens:
        kept.append(token)
        piece = assembler.push(token)
        text += piece.text
        if piece.rewound:
            assert (piece.released, piece.text, piece.stop) == (0, "", None)
            del kept[-piece.rewound :]
        stop = piece.stop
        if stop is not None:
            break
    return kept, text, stop


def test_what_completes_a_banned_string_is_taken_back_to_the_token_in_which_it_begins() -> None:
    assembler = TextAssembler(banned=("bad cat",))
    assert [assembler.push(token) for token in (b"a b", b"ad", b" c")] == [Piece(0, "")] * 3
    assert assembler.push(b"at!") == Piece(0, "", None, rewound=4)
    assert assembler.push(b"a ") == Piece(1, "a ")
    assert [assembler.push(token) for token in (b"bad", b" dog")] == [Piece(0, ""), Piece(2, "bad dog")]


def test_case_is_ignored_and_nothing_else() -> None:
    assert TextAssembler(banned=("STRASSE É",)).push("straSSe é".encode()).rewound == 1
    assert TextAssembler(banned=("ﬁ",)).push(b"fi") == Piece(1, "fi")
    # One character stays one, even where its small form is two.
    assert TextAssembler(banned=("x",)).push("İİx".encode()).rewound == 1


def test_a_banned_string_that_begins_in_what_was_shown_is_found_too() -> None:
    assert TextAssembler(shown=b"ab", banned=("abc",)).push(b"c").rewound == 1


def test_of_a_stop_string_and_a_banned_one_the_first_complete_wins() -> None:
    assert TextAssembler(("ab",), banned=("bc",)).push(b"xabc") == Piece(0, "x", "ab")
    assert TextAssembler(("bc",), banned=("ab",)).push(b"xabc").rewound == 1
    assert TextAssembler(("ab",), banned=("ab",)).push(b"xab") == Piece(0, "x", "ab")


def test_half_a_character_is_forgotten_with_its_token() -> None:
    assembler = TextAssembler(banned=("x",))
    assert assembler.push("é".encode()[:1]) == Piece(0, "")
    assert assembler.push("é".encode()[1:] + b"x" + "日".encode()[:2]).rewound == 1
    assert assembler.push("é".encode()[1:]) == Piece(2, "é")


def test_at_the_end_the_beginning_of_a_banned_string_is_text() -> None:
    assembler = TextAssembler(banned=("abc", "b\ufffd"))
    assert assembler.push(b"ab\xe2") == Piece(0, "")
    assert assembler.finish() == Piece(1, "ab\ufffd")


@given(tokens(), stops, stops)
@example([b"a", b"b", b"a", b"b"], (), ("ab",))
def test_what_is_kept_never_says_a_banned_string_and_reads_as_if_nothing_else_had_been(
    cut: list[bytes], stop: tuple[str, ...], banned: tuple[str, ...]
) -> None:
    assembler = TextAssembler(stop, banned=banned)
    kept, text, ended = keep(assembler, cut)
    text += assembler.finish().text if ended is None else ""
    again = TextAssembler(stop, banned=banned)
    assert keep(again, kept)[0] == kept
    plain = TextAssembler(stop)
    expected = "".join(plain.push(token).text for token in (kept if ended is None else kept[:-1]))
    if ended is None:
        assert text == expected + plain.finish().text
        shown = text.rstrip("\ufffd")
        assert not any(word.lower() in shown.lower() for word in banned if "\ufffd" not in word)
