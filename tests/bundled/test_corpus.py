"""The text that the demo model learns from: the same for a seed, right where it counts, apart from what is held out."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from random import Random

import pytest

from worker.bundled import corpus, world
from worker.bundled.corpus import Turn

SEEDS = range(300)


def turns(kind: str) -> list[Turn]:
    """Many turns of one generator."""
    make = {maker.__name__: maker for maker, _ in corpus.KINDS_OF_TURN}[kind]
    return [make(Random(seed)) for seed in SEEDS]


def test_same_seed_and_step_give_the_same_conversations() -> None:
    first = list(itertools.islice(corpus.conversations(3, 7), 50))
    assert first == list(itertools.islice(corpus.conversations(3, 7), 50))
    assert first != list(itertools.islice(corpus.conversations(3, 8), 50))
    assert first != list(itertools.islice(corpus.conversations(4, 7), 50))


def test_corpus_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    # Sets of strings change their order from process to process; a choice from one would too.
    assert sorted(corpus.COMMON_WORDS) == corpus.COMMON_WORDS
    assert corpus.held_out("count", 1, 60) == corpus.held_out("count", 1, 60)


def test_every_kind_of_turn_comes_up() -> None:
    talks = list(itertools.islice(corpus.conversations(1), 400))
    assert {1, 2, 3, 6} <= {len(talk.turns) for talk in talks} <= set(range(1, 7))
    assert any(talk.system for talk in talks) and not all(talk.system for talk in talks)


def test_counting_is_right_and_spans_the_whole_range() -> None:
    down = 0
    lasts: list[int] = []
    for turn in turns("counting"):
        numbers = [int(word) for word in turn.answer.split(" ")]
        steps = {b - a for a, b in itertools.pairwise(numbers)}
        assert turn.exact
        assert steps <= {1} or steps <= {-1}
        down += steps == {-1}
        asked = [int(digits) for digits in re.findall(r"\d+", turn.user)]
        assert asked in ([numbers[0], numbers[-1]], [numbers[-1]])
        lasts.append(max(numbers))
    assert 0 < down < len(SEEDS) / 3
    assert max(lasts) >= 250


def test_cut_counts_begin_a_count_and_often_pass_a_look_alike_of_the_last_number() -> None:
    alike = 0
    for turn in turns("cut_counting"):
        first, last = map(int, re.findall(r"\d+", turn.user))
        numbers = [int(word) for word in turn.answer.split(" ")]
        assert turn.exact and turn.cut
        assert numbers == list(range(first, numbers[-1] + 1))
        assert numbers[-1] < last
        alike += any((last - number) % 10 == 0 for number in numbers)
        assert not corpus.held_out("count", first, last)
    assert alike > len(SEEDS) / 2


def test_nothing_follows_a_cut_answer() -> None:
    for talk in itertools.islice(corpus.conversations(1, 10_000), 400):
        assert not any(turn.cut for turn in talk.turns[:-1])


def test_phases_teach_different_mixtures_in_turn() -> None:
    def kinds(step: int) -> Counter[bool]:
        talks = itertools.islice(corpus.conversations(1, step), 200)
        return Counter(turn.user.split(" ")[-1][:1].isdigit() for talk in talks for turn in talk.turns)

    ends = [end for end, _ in corpus.PHASES]
    assert ends == sorted(ends)
    assert len({tuple(kinds(step).items()) for step in (0, *ends)}) == len(ends) + 1


@pytest.mark.parametrize(("first", "last", "text"), [(7, 10, "7 8 9 10"), (3, 1, "3 2 1"), (5, 5, "5"), (0, 1, "0 1")])
def test_numbers(first: int, last: int, text: str) -> None:
    assert corpus.numbers(first, last) == text


def test_sums_are_right() -> None:
    for turn in turns("arithmetic"):
        found = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)\.", turn.answer)
        assert found is not None, turn.answer
        a, sign, b, result = int(found[1]), found[2], int(found[3]), int(found[4])
        assert result == (a + b if sign == "+" else a - b)
        assert a <= 99 and b <= 99
        assert sorted(map(int, re.findall(r"\d+", turn.user))) == sorted([a, b])


def test_repetition_repeats_what_was_said() -> None:
    texts = turns("repetition")
    assert all(turn.answer in turn.user and turn.answer for turn in texts)
    assert any(not turn.answer.isascii() for turn in texts)
    assert len({turn.answer for turn in texts}) > 0.95 * len(texts)


def test_held_out_numbers_never_appear() -> None:
    for turn in turns("counting"):
        numbers = [int(word) for word in turn.answer.split(" ")]
        assert not corpus.held_out("count", min(numbers), max(numbers))
    for turn in turns("arithmetic"):
        a, sign, b, *_ = turn.answer.split(" ")
        assert not corpus.held_out("sum", int(a), sign, int(b))


def test_held_out_share_is_a_twentieth() -> None:
    share = sum(corpus.held_out("count", a, b) for a in range(100) for b in range(100)) / 10_000
    assert 0.04 < share < 0.06


def test_held_out_phrasings_never_appear_and_every_fact_is_taught() -> None:
    held = {
        question
        for questions, _, key in corpus.FACTS
        for index, question in enumerate(questions)
        if corpus.fact_held_out(key, index)
    }
    asked = Counter(turn.user for seed in range(20) for turn in turns_from("knowledge", seed))
    assert len(held) >= 5
    assert not held & set(asked)
    assert all(not corpus.fact_held_out(key, 0) for _, _, key in corpus.FACTS)


def turns_from(kind: str, seed: int) -> list[Turn]:
    """A hundred turns in a row from one stream."""
    make = {maker.__name__: maker for maker, _ in corpus.KINDS_OF_TURN}[kind]
    rng = Random(seed)
    return [make(rng) for _ in range(100)]


def test_facts_have_one_answer_each() -> None:
    answers: dict[str, set[str]] = {}
    for questions, answer, _ in corpus.FACTS:
        for question in questions:
            answers.setdefault(question, set()).add(answer)
    assert {question for question, known in answers.items() if len(known) > 1} == set()
    assert len({key for _, _, key in corpus.FACTS}) == len(corpus.FACTS)


def test_facts_are_filled_in_and_end_like_sentences() -> None:
    for questions, answer, _ in (*corpus.FACTS, *world.CHAT):
        assert answer[0].isupper() and answer[-1] in ".!?"
        assert not re.search(r"[{}]|  ", answer + "".join(questions))


def test_unknown_questions_are_refused_politely() -> None:
    for turn in turns("refusal"):
        assert "tiny demo model" in turn.answer
        assert "{" not in turn.user
