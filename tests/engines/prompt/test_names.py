"""Names in text: all are found, the longest first, and a thousand cost little more than one."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.prompt.names import finder

NAMES = ("<|a|>", "<|ab|>", "<|a|>b", "[x]", "[", "x", "\n", ".*", "é👩‍🚀", "")
texts = st.lists(st.sampled_from([*NAMES, "<|", "|>", "a", "é", "👩"])).map("".join)


@given(st.sets(st.sampled_from(NAMES)), texts)
def test_what_is_found_is_what_an_expression_of_all_names_finds(names: set[str], text: str) -> None:
    found = finder(names)
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    if found is None:
        assert not longest_first
        return
    expected = re.compile("|".join(map(re.escape, longest_first)))
    assert [match.span() for match in found.finditer(text)] == [match.span() for match in expected.finditer(text)]


@given(st.sets(st.sampled_from(NAMES)), texts)
def test_first_characters_are_those_at_which_a_name_begins(names: set[str], text: str) -> None:
    found = finder(names, whole=False)
    begins = [place for place in range(len(text)) if any(text.startswith(name, place) for name in names if name)]
    assert [match.span() for match in found.finditer(text)] == [(n, n + 1) for n in begins] if found else not begins


@pytest.mark.parametrize("text", ["hello world ", "<", "<unused"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_thousand_names_cost_little(text: str, whole: bool) -> None:
    """As an expression of all names, one such text took up to 40 s."""
    found = finder((*(f"<unused{n}>" for n in range(100)), *(f"[image{n}]" for n in range(900))), whole=whole)
    assert found is not None
    begun_s = time.perf_counter()
    assert found.search(text * (1_000_000 // len(text))) is None
    assert time.perf_counter() - begun_s < 6
