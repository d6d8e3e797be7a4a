"""What strangers wrote does not act on a terminal or in a log: every character, alone and in pieces of a text."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from worker import printable

CONTROLS = [chr(number) for number in (*range(0x20), *range(0x7F, 0xA0))]
LINES = ["\u2028", "\u2029"]
DIRECTIONS = [chr(number) for number in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))]


@pytest.mark.parametrize("char", [*CONTROLS, *LINES, *DIRECTIONS], ids=ascii)
def test_a_line_shows_it_as_its_number(char: str) -> None:
    shown = printable.in_line(f"a{char}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert shown == f"a{ascii(char)[1:-1]}b"


@pytest.mark.parametrize("char", CONTROLS, ids=ascii)
def test_a_text_keeps_its_lines_and_tabs(char: str) -> None:
    assert printable.in_text(char) == (char if char in "\n\t" else ascii(char)[1:-1])


def test_all_other_characters_are_kept() -> None:
    changed = [chr(number) for number in range(sys.maxunicode + 1) if printable.in_line(chr(number)) != chr(number)]
    assert sorted(changed) == sorted([*CONTROLS, *LINES, *DIRECTIONS])
    assert {unicodedata.category(char) for char in set(map(chr, range(0x110000))) - set(changed)}.isdisjoint({"Cc"})


def test_a_sequence_in_two_pieces_is_none() -> None:
    pieces = ("go \x1b", "[2J\x9b3", "1m on\r\n")
    assert (
        "".join(map(printable.in_text, pieces)) == printable.in_text("".join(pieces)) == "go \\x1b[2J\\x9b31m on\\r\n"
    )


def test_lines_of_ours_stay_lines() -> None:
    assert printable.in_lines("one\n two\x1b\u202e\n") == "one\n two\\x1b\\u202e\n"


def test_a_name_is_short() -> None:
    assert printable.name("fox\n\x07") == "fox\\n\\x07"
    assert printable.name("x" * 200) == "x" * 200
    assert printable.name("x" * 201) == "x" * 197 + "..."
