"""The training text: conversations, written by seeded generators from the standard library alone.

A conversation is a list of turns. Each turn is marked as exact or not: counting, sums and repetition have one right
answer, which the training makes the model very sure of. `held_out` marks the numbers and phrasings that the training
never shows; `evaluate` asks for those.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from worker.bundled import stories, world

COUNT_MAX = 300
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SCRIPTS = (
    "äöüßéèêçñåøæœíóúÄÖÜÉ",
    "абвгдежзиклмнопрстуфхцчшыэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "日本語中文字山川水火木金土人大小",
    "あいうえおかきくけこさしすせそ",
    "אבגדהוזחטיכלמנ",
    "ابتثجحخدذرزسش",
    "🦊🐻🦉🐭🎈🌟🌙🔥🍎🚀😀👍🏽🇫🇷❤",
    "€£¥§°±×÷→←…–—“”„",  # noqa: RUF001 - to be repeated as they are
)
PUNCTUATION = "!?.,;:-_+*/=()[]{}<>@#$%&'\"|~^`\\"


@dataclass(frozen=True, slots=True)
class Turn:
    """A user's message and the model's answer; `exact` when only this answer is right.

    `cut`: the answer is only the beginning of one, and nothing follows it.
    """

    user: str
    answer: str
    exact: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with or without a system message ahead of them."""

    system: str | None
    turns: tuple[Turn, ...]


def held_out(*key: object) -> bool:
    """Return whether this key belongs to the twentieth part that is never trained on. The same on every machine."""
    return zlib.crc32(repr(key).encode()) % 20 == 0


COUNT_UP = (
    *("Count from {a} to {b}",) * 6, *("Count from {a} to {b}.",) * 2, "Please count from {a} to {b}.",
    "count {a} to {b}", "Please count from {a} to {b}", "count from {a} to {b}", "Count {a} to {b}",
    "Can you count from {a} to {b}?", "Count up from {a} to {b}", "Could you count from {a} to {b}?",
    "Write the numbers from {a} to {b}", "List the numbers from {a} to {b}.", "I want you to count from {a} to {b}.",
    "Start at {a} and count to {b}.",
)
COUNT_TO = ("Count to {b}", "Count to {b}.", "Please count to {b}.", "Can you count to {b}?", "count to {b}")
COUNT_DOWN = (
    "Count down from {b} to {a}", "Count down from {b} to {a}.", "Count backwards from {b} to {a}",
    "Count from {b} to {a}",
    "Please count down from {b} to {a}.", "Count from {b} down to {a}",
)


# Short counts teach where to stop, long ones to go on.
SPANS = ((0, 12), (5, 40), (20, 100), (60, 250))


def number_pair(rng: Random, spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Two numbers a <= b for counting, up to COUNT_MAX and at times up to 999, that are not held out."""
    while True:
        top = COUNT_MAX if rng.random() < 0.95 else 999
        shortest, longest = rng.choice(spans)
        length = rng.randint(shortest, longest)
        first = 1 if rng.random() < 0.3 else rng.randint(0, 20) if rng.random() < 0.3 else rng.randint(0, top)
        last = min(first + length, top)
        if first <= last and last - first <= (250 if top == COUNT_MAX else 60) and not held_out("count", first, last):
            return first, last


def numbers(first: int, last: int) -> str:
    """Return the numbers from first to last, upwards or downwards, with one space between each two."""
    step = 1 if first <= last else -1
    return " ".join(map(str, range(first, last + step, step)))


def short_counting(rng: Random) -> Turn:
    """Return a count over a few numbers."""
    return counting(rng, ((0, 5), (0, 12), (5, 30)))


def medium_counting(rng: Random) -> Turn:
    """Return a count that passes numbers with the same last digits as the last one."""
    return counting(rng, ((0, 12), (5, 40), (20, 100), (20, 100)))


def counting(rng: Random, spans: Sequence[tuple[int, int]] = SPANS) -> Turn:
    """Return a count up, or at times down, between two numbers."""
    first, last = number_pair(rng, spans)
    if last - first <= 60 and rng.random() < 0.25:
        return Turn(rng.choice(COUNT_DOWN).format(a=first, b=last), numbers(last, first), exact=True)
    if first == 1 and rng.random() < 0.15:
        return Turn(rng.choice(COUNT_TO).format(b=last), numbers(first, last), exact=True)
    return Turn(rng.choice(COUNT_UP).format(a=first, b=last), numbers(first, last), exact=True)


def cut_counting(rng: Random) -> Turn:
    """Return a part of a count, often past a number that ends like the last one, such as 118 on the way to 218.

    To go on there is the hardest decision of a count, and a whole one is long.
    """
    while True:
        last = rng.randint(20, COUNT_MAX)
        step = rng.choice((10, 100, 100)) if last > 100 else 10
        passed = last - step * rng.randint(1, last // step) if rng.random() < 0.5 else rng.randint(0, last - 1)
        first = max(0, passed - rng.randint(0, 15))
        if not held_out("count", first, last):
            text = numbers(first, min(passed + rng.randint(1, 4), last - 1))
            return Turn(rng.choice(COUNT_UP).format(a=first, b=last), text, exact=True, cut=True)


SUM_WORDS = {
    "+": ("What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a} + {b} = ?", "What is {a} plus {b}?",
          "Add {a} and {b}", "How much is {a} + {b}?", "Calculate {a} + {b}", "What is the sum of {a} and {b}?"),
    "-": ("What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =", "{a} - {b} = ?", "What is {a} minus {b}?",
          "Subtract {b} from {a}", "How much is {a} - {b}?", "Calculate {a} - {b}"),
}


def sum_answer(a: int, sign: str, b: int) -> str:
    """Return the whole sum as a sentence: "12 + 30 = 42."."""
    return f"{a} {sign} {b} = {a + b if sign == '+' else a - b}."


def arithmetic(rng: Random) -> Turn:
    """Return a sum of two numbers up to 99, or a difference that is not negative."""
    while True:
        a, b, sign = rng.randint(0, 99), rng.randint(0, 99), rng.choice("+--")  # differences are harder
        if rng.random() < 0.6:
            a, b = a % 21, b % 21
        if (sign == "+" or a >= b) and not held_out("sum", a, sign, b):
            return Turn(rng.choice(SUM_WORDS[sign]).format(a=a, b=b), sum_answer(a, sign, b), exact=True)


REPEAT_WORDS = (
    *("Repeat after me: {t}",) * 5, "Repeat: {t}", "Please repeat after me: {t}", "Repeat this: {t}", "Say this: {t}",
    "repeat after me: {t}", "Echo: {t}", "Please repeat: {t}", "Say: {t}", "Repeat the following: {t}",
    "Copy this: {t}",
)


def chunk(rng: Random) -> str:
    """One word to repeat: a known word, an invented one, a number, letters, other scripts or signs."""
    draw = rng.random()
    if draw < 0.35:
        return rng.choice(COMMON_WORDS)
    if draw < 0.55:
        return stories.pseudo_word(rng)
    if draw < 0.67:
        return str(rng.randint(0, 10 ** rng.randint(1, 6)))
    if draw < 0.77:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 8)))
    if draw < 0.84:
        return "".join(rng.choice(LETTERS + LETTERS.upper() + "0123456789") for _ in range(rng.randint(2, 12)))
    if draw < 0.94:
        return "".join(rng.choice(rng.choice(SCRIPTS)) for _ in range(rng.randint(1, 3)))
    return rng.choice(COMMON_WORDS) + rng.choice(PUNCTUATION)


def repetition(rng: Random) -> Turn:
    """Return a text to repeat word by word: a sentence, single letters or a row of words."""
    draw = rng.random()
    if draw < 0.2:
        text = rng.choice(stories.tell(rng)[1].split(". ")).strip()
    elif draw < 0.27:
        text = " ".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 26)))
    elif draw < 0.34:
        text = " ".join(str(rng.randint(0, 99)) for _ in range(rng.randint(2, 20)))
    else:
        separator = " " if rng.random() < 0.9 else rng.choice([", ", "-", "\n"])
        text = separator.join(chunk(rng) for _ in range(rng.choice((1, 2, 3, 4, 5, 6, 8, 12, 20))))
        if rng.random() < 0.15:
            text = text[0].upper() + text[1:] + rng.choice(".!?")
    return Turn(rng.choice(REPEAT_WORDS).format(t=text), text, exact=True)


def story(rng: Random) -> Turn:
    """Return a request for a story and the story."""
    return Turn(*stories.tell(rng))


FACTS = tuple(world.facts())
COMMON_WORDS = sorted(
    set(stories.KINDS + stories.RARE_KINDS + stories.ADJECTIVES + stories.THINGS + stories.WEATHER + stories.SHE_NAMES)
    | set(stories.words(
        "the a and of to in is it you that he was for on are with as I his they be at one have this from or had by "
        "hello world yes no please water house bread sun moon star alpha beta gamma delta quick brown jumps"
    ))
)


def knowledge(rng: Random) -> Turn:
    """Return a question about the invented world, in a phrasing that is not held out."""
    while True:
        questions, answer, key = rng.choice(FACTS)
        index = rng.randrange(len(questions))
        if not fact_held_out(key, index):
            return Turn(world.casual(questions[index], rng), answer)


def fact_held_out(key: str, index: int) -> bool:
    """Whether this phrasing of this fact is held out.

    The first phrasing never is, so every fact is taught, nor are those that no other fact shares: their keys are one
    word.
    """
    return index > 0 and " " in key and held_out("fact", key, index)


def smalltalk(rng: Random) -> Turn:
    """Greetings, thanks and questions about the model."""
    questions, answer, _ = rng.choice(world.CHAT)
    return Turn(world.casual(rng.choice(questions), rng), answer)


def refusal(rng: Random) -> Turn:
    """Return a question that the model cannot answer, and a polite answer."""
    return Turn(*world.unknown(rng, stories.pseudo_word(rng)))


Mixture = tuple[tuple[Callable[[Random], Turn], int], ...]
KINDS_OF_TURN: Mixture = (
    (counting, 20), (cut_counting, 30), (story, 16), (knowledge, 8), (arithmetic, 45), (repetition, 16), (smalltalk, 4),
    (refusal, 4),
)
# Short texts whose answers must be looked up in the request: copying is learned best from these.
COPYING: Mixture = (
    (short_counting, 25), (story, 4), (knowledge, 8), (arithmetic, 15), (repetition, 45), (smalltalk, 2), (refusal, 2),
)
# Short texts whose answers must be worked out: where a count ends, what a sum is.
EXACT: Mixture = (
    (medium_counting, 40), (story, 4), (knowledge, 2), (arithmetic, 45), (repetition, 8), (smalltalk, 1), (refusal, 1),
)
PHASES: tuple[tuple[int, Mixture], ...] = ((960, COPYING), (2200, EXACT))  # each until this step, then all kinds
SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant.", "You are a tiny demo model.", "Answer briefly.",
    "You are a storyteller.", "Be kind and polite.", "You are Jobwire.", "You are an assistant that answers questions.",
)


def turn(rng: Random, mixture: Mixture) -> Turn:
    """One turn of a kind drawn from the mixture."""
    makers, weights = zip(*mixture, strict=True)
    make: Callable[[Random], Turn] = rng.choices(makers, weights)[0]
    return make(rng)


def conversation(rng: Random, mixture: Mixture = KINDS_OF_TURN) -> Conversation:
    """One to six turns, mostly one, at times with a system message."""
    count = rng.choices((1, 2, 3, 6), (66, 20, 11, 3))[0]
    system = rng.choice(SYSTEMS) if rng.random() < 0.12 else None
    turns: list[Turn] = []
    while len(turns) < count and not (turns and turns[-1].cut):
        turns.append(turn(rng, mixture))
    return Conversation(system, tuple(turns))


def conversations(seed: int, step: int = 0) -> Iterator[Conversation]:
    """Yield conversations without end, a function of seed and step alone. Step -1 is for the tokenizer."""
    rng = Random(f"{seed}:{step}")  # noqa: S311 - text to learn from, no secret
    mixture = KINDS_OF_TURN if step < 0 else next((mix for end, mix in PHASES if step < end), KINDS_OF_TURN)
    while True:
        yield conversation(rng, mixture)
