"""Text that strangers wrote, for terminals and log lines: a character that acts there is shown as its number. Pure.

Clients, model files and models may write any character. Some move the cursor, set a title or answer a question of the
terminal; others begin a line of their own, or reverse the order of what is read.
"""

from __future__ import annotations

import re

NAME_CHARS_MAX = 200
"""Longest name that is shown in full."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters of both sets, C0 and C1, but for a newline and a tab."""

_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""All control characters, what separates lines and paragraphs, and what overrides the direction of text."""


def in_text(text: str) -> str:
    """Return text of any number of lines without control characters. Pieces of a text may be treated one by one."""
    return _CONTROLS.sub(_number, text)


def in_line(text: str) -> str:
    """Return text as a part of one line."""
    return _NOT_IN_A_LINE.sub(_number, text)


def in_lines(text: str) -> str:
    """Return lines of ours that quote strangers: each as `in_line` has it."""
    return "\n".join(map(in_line, text.split("\n")))


def name(text: str) -> str:
    """Return a name as a part of one line, cut if it is very long."""
    cut = text if len(text) <= NAME_CHARS_MAX else text[: NAME_CHARS_MAX - 3] + "..."
    return in_line(cut)


def _number(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
