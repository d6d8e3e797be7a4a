"""The story grammar: sentences, quotes, articles and references hold for every seed."""

from __future__ import annotations

import re
import string
from random import Random

import pytest

from worker.bundled import plots, stories

SEEDS = range(400)
SPEECH = re.compile("(s?he )?(asked|cried|said|called|shouted|wondered|whispered)")
AROUND = " in | on | at | by | near | under | behind | next "
TOLD = [stories.tell(Random(seed)) for seed in SEEDS]


def beats() -> list[plots.Beat]:
    """Every beat of the grammar."""
    return [plots.OPENINGS, plots.SETTINGS, plots.ENDINGS, plots.MORALS, *(b for plot in stories.PLOTS for b in plot)]


def test_same_seed_same_story() -> None:
    assert stories.tell(Random(5)) == stories.tell(Random(5))


def test_stories_differ() -> None:
    assert len({story for _, story in TOLD}) == len(TOLD)


def test_every_slot_is_known() -> None:
    cast = stories.cast(Random(1))
    known = set(stories.slots(Random(1), cast))
    used = {
        name
        for beat in beats()
        for line in beat
        for _, name, _, _ in string.Formatter().parse(line)
        if name is not None
    }
    assert used <= known
    assert known <= used, "a slot that no sentence uses"


def test_sentences_begin_and_end_as_sentences_do() -> None:
    for _, story in TOLD:
        assert "  " not in story and " ." not in story and " ," not in story and ",," not in story and ",." not in story
        assert re.search(r'[.!?]"?$', story)
        for sentence in re.split(r'(?<=[.!?])"? "?', story):
            assert sentence[0].isupper() or SPEECH.match(sentence), sentence


def test_quotes_are_balanced() -> None:
    for beat in beats():
        for line in beat:
            assert line.count('"') % 2 == 0, line
    for _, story in TOLD:
        assert story.count('"') % 2 == 0


def test_articles_fit_the_next_word() -> None:
    for wish, story in TOLD:
        for text in (wish, story):
            assert not re.search(r"\b[Aa] [aeio]", text), text
            assert not re.search(r"\b[Aa]n (?![aeiou])", text), text


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("fox", "a fox"), ("owl", "an owl"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella"), ("elf", "an elf")],
)
def test_article(noun: str, expected: str) -> None:
    assert stories.article(noun) == expected


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("in the forest", "the forest"),
        ("on a green hill", "the green hill"),
        ("at the edge of the desert", "the edge of the desert"),
        ("under a bridge", "the bridge"),
    ],
)
def test_definite_place(place: str, expected: str) -> None:
    assert stories.definite(place) == expected


def test_story_keeps_what_the_request_names() -> None:
    for wish, story in TOLD:
        about = re.search(rf"about an? ([a-z ]+?)( named| called| and|{AROUND}|[.?,]|$)", wish)
        if about:
            assert about[1].strip() in story, (wish, story)
        name = re.search(r"(?:named|called) ([A-Z]\w+)", wish)
        if name:
            assert name[1] in story


def test_friend_and_thing_are_introduced_once() -> None:
    for seed in SEEDS:
        cast = stories.cast(Random(seed))
        story = stories.narrate(Random(seed), cast)
        assert story.count(cast.friend.phrase()) == 1, story
        assert story.count(stories.article(cast.thing)) <= 1, story
        if f"the {cast.thing}" in story:
            assert story.index(stories.article(cast.thing)) < story.index(f"the {cast.thing}"), story


def test_hero_and_friend_have_different_names_and_kinds() -> None:
    for seed in SEEDS:
        cast = stories.cast(Random(seed))
        assert cast.hero.name != cast.friend.name
        assert cast.hero.kind != cast.friend.kind


def test_pronouns_fit_queens_and_kings() -> None:
    rng = Random(0)
    assert all(stories.being(rng, "queen").she for _ in range(20))
    assert not any(stories.being(rng, "king").she for _ in range(20))


def test_stories_have_a_handy_length() -> None:
    lengths = sorted(len(story.split()) for _, story in TOLD)
    assert lengths[0] >= 45 and lengths[-1] <= 220
