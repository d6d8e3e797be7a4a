"""Finds the names of a model's tokens in text: there may be a thousand of them, and text may be a megabyte."""

from __future__ import annotations

import re
from collections.abc import Iterable


def finder(names: Iterable[str], *, whole: bool = True) -> re.Pattern[str] | None:
    """Return an expression that finds these names, the longest of several at one place; None where there are none.

    A match is the name, or without `whole` its first character alone. The expression begins with the names' first
    characters, for which text is searched a hundred times faster.
    """
    rests: dict[str, list[str]] = {}
    for name in sorted({name for name in names if name}, key=len, reverse=True):
        rests.setdefault(name[0], []).append(re.escape(name[1:]))
    group = "(?:{})" if whole else "(?={})"
    finders = [re.escape(first) + group.format("|".join(rest)) for first, rest in rests.items()]
    return re.compile("|".join(finders)) if finders else None
