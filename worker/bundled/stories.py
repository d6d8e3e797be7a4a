"""A seeded grammar of short stories: a hero, a place, a thing and a friend, told through one of many plots.

`tell` returns a request and the story that answers it. The story keeps what the request names (kind, name, place,
thing), so a model that learns from it has to look back at the request instead of inventing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from worker.bundled import plots
from worker.bundled.adventures import ADVENTURES

PLOTS: tuple[plots.Plot, ...] = (
    plots.LOST, plots.FOUND, plots.STORM, plots.FRIEND, plots.RACE, plots.GIFT, *ADVENTURES,
)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


KINDS = words(
    "fox rabbit bear owl mouse hedgehog squirrel deer wolf otter beaver badger frog turtle duck goose swan crow robin "
    "sparrow cat kitten dog puppy horse pony donkey cow sheep goat pig hen lion tiger elephant monkey giraffe zebra "
    "penguin seal whale dolphin crab snail bee ant butterfly spider dragon unicorn robot giant ghost pirate knight "
    "king queen prince princess wizard witch farmer baker sailor painter girl boy gardener miller"
)
RARE_KINDS = words(
    "train tractor teapot cloud lamp tree pencil moon snowman kangaroo camel parrot hamster lizard shark octopus "
    "teacher doctor astronaut detective dinosaur mermaid fairy troll clock umbrella boat car rocket bus mountain "
    "programmer computer sandwich potato banana cactus eagle raven mole bat moth fish salmon worm rat cook clown"
)
GIRLS, BOYS = {"queen", "princess", "witch", "girl", "cow", "hen", "mermaid"}, {"king", "prince", "boy", "wizard"}
SHE_NAMES = words("Mina Lily Rosa Ella Nora Tilly Wren Ivy Juno Poppy Luna Hazel Clara Daisy Mabel Olive")
HE_NAMES = words("Pip Tom Oscar Finn Bruno Milo Otto Hugo Jasper Nico Rufus Barnaby Felix Toby Theo Max")
ADJECTIVES = words(
    "little young old clever shy brave kind curious lazy hungry quiet cheerful tiny friendly gentle proud"
)
PLACES = (
    "in the forest", "by the sea", "on a green hill", "near the old mill", "at the edge of the desert",
    "in a quiet valley", "on a small island", "in the mountains", "by a blue lake", "in the big city",
    "under a bridge", "in a garden", "behind the castle", "on a farm", "in a hollow tree", "next to the river",
    "at the end of the road", "in the snow", "near the lighthouse", "in a little village",
)
THING_ADJECTIVES = words("red blue silver golden old wooden tiny yellow green white broken shiny")
THINGS = words(
    "kite key lamp hat boat bell drum cup ring button scarf umbrella basket book mirror clock whistle coat flute "
    "stone shell coin feather box bottle candle wheel ladder bag ball"
)
WEATHER = words("sunny rainy windy cold warm foggy bright snowy cloudy grey")
FEELINGS = words("happy cheerful glad proud merry calm")
INTRODUCTION = re.compile(r",(?: who was)? \{afriend\},?(?= [a-z]|\.)")
FOODS = (
    "bread and honey", "apple pie", "warm soup", "berries", "pancakes", "nut cake", "cheese", "plum jam",
    "fresh rolls", "roasted chestnuts", "carrot cake", "pears",
)


def article(noun: str) -> str:
    """`noun` with its indefinite article: "an owl", "a unicorn"."""
    return ("an " if noun[0] in "aeiou" and not noun.startswith("uni") else "a ") + noun


def pseudo_word(rng: Random) -> str:
    """Return a pronounceable word that does not exist, of one to three syllables."""
    syllable = [rng.choice("bcdfgklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))]
    return "".join(syllable) + rng.choice(["b", "ck", "l", "m", "n", "p", "r", "t", "x", "sh"])


@dataclass(frozen=True, slots=True)
class Being:
    """Somebody in a story: a kind ("fox"), a name, a describing word and whether it is "she" or "he"."""

    kind: str
    name: str
    adjective: str
    she: bool

    def phrase(self) -> str:
        """Return the being as it is introduced: "a little fox"."""
        return article(f"{self.adjective} {self.kind}")


@dataclass(frozen=True, slots=True)
class Cast:
    """All that a story is about. `place` is a phrase such as "in the forest", `thing` such as "red kite"."""

    hero: Being
    friend: Being
    place: str
    thing: str


def being(rng: Random, kind: str, taken: str = "") -> Being:
    """Return a being of this kind whose name differs from `taken` and fits a queen or a king."""
    she = kind in GIRLS or (kind not in BOYS and rng.random() < 0.5)
    name = rng.choice([name for name in (SHE_NAMES if she else HE_NAMES) if name != taken])
    if rng.random() < 0.06:
        name = pseudo_word(rng).capitalize()
    return Being(kind, name, rng.choice(ADJECTIVES), she)


def hero_kind(rng: Random) -> str:
    """Mostly an animal or a person of fairy tales, at times a rare or an invented noun."""
    draw = rng.random()
    return rng.choice(KINDS) if draw < 0.8 else rng.choice(RARE_KINDS) if draw < 0.92 else pseudo_word(rng)


def cast(rng: Random) -> Cast:
    """Return a hero, a friend of another kind, a place and a thing."""
    hero = being(rng, hero_kind(rng))
    friend = being(rng, rng.choice([kind for kind in KINDS if kind != hero.kind]), hero.name)
    return Cast(hero, friend, rng.choice(PLACES), f"{rng.choice(THING_ADJECTIVES)} {rng.choice(THINGS)}")


def request(rng: Random, told: Cast) -> str:
    """Return a wish for a story that names between none and three parts of the cast."""
    about = article(told.hero.kind)
    if rng.random() < 0.15:
        about = told.hero.phrase()
    if rng.random() < 0.2:
        about += rng.choice([" named ", " called "]) + told.hero.name
    extra = rng.random()
    if extra < 0.15:
        about += f" and {article(told.thing)}"
    elif extra < 0.25:
        about += f" and {article(told.friend.kind)}"
    elif extra < 0.35:
        about += f" {told.place}"
    wish = rng.choice(REQUESTS).format(about=about)
    if rng.random() < 0.1:
        wish = rng.choice(OPEN_REQUESTS)
    if rng.random() < 0.15:
        wish = wish[0].lower() + wish[1:]
    return wish + rng.choice(["", "", ".", "."] if "?" not in wish else [""])


REQUESTS = (
    *("Tell me a story about {about}",) * 6,
    "Tell me a short story about {about}", "Tell a story about {about}", "Please tell me a story about {about}",
    "Write a story about {about}", "Write a short story about {about}", "Please write a story about {about}",
    "Can you tell me a story about {about}?", "Could you write a story about {about}?", "A story about {about}, please",
    "I would like a story about {about}", "I want to hear a story about {about}", "Give me a story about {about}",
    "Make up a story about {about}", "Story about {about}", "Do you know a story about {about}?",
)
OPEN_REQUESTS = (
    "Tell me a story", "Tell me a short story", "Please tell me a story", "Write a story", "I want to hear a story",
    "Can you tell me a story?", "A story, please", "Tell me something", "Once upon a time", "Tell me another story",
)


def slots(rng: Random, told: Cast) -> dict[str, str]:
    """Return the words that fill the slots of a plot; `plots` lists them."""
    hero, friend = told.hero, told.friend
    pronouns = ("she", "her", "her") if hero.she else ("he", "him", "his")
    theirs = ("she", "her", "her") if friend.she else ("he", "him", "his")
    filled = dict(zip(("he", "him", "his"), pronouns, strict=True))
    filled |= {f"m{key}": word for key, word in zip(("he", "him", "his"), theirs, strict=True)}
    filled |= {key.capitalize(): filled[key].capitalize() for key in ("he", "his")}
    return filled | {
        "n": hero.name, "m": friend.name, "ahero": hero.phrase(),
        "afriend": friend.phrase(), "o": article(told.thing), "ao": article(told.thing), "p": told.place,
        "pl": definite(told.place), "w": rng.choice(WEATHER), "food": rng.choice(FOODS),
        "feel": rng.choice(FEELINGS), "himself": "herself" if hero.she else "himself",
    }


def definite(place: str) -> str:
    """Return the place of a phrase: "on a green hill" becomes "the green hill"."""
    return "the " + place.split(" a ", 1)[1] if " a " in place else place[place.index("the ") :]


def narrate(rng: Random, told: Cast) -> str:
    """Return a story of seven to fourteen sentences about this cast."""
    slot = slots(rng, told)
    ending = (plots.ENDINGS,) if rng.random() < 0.7 else ()
    moral = (plots.MORALS,) if rng.random() < 0.25 else ()
    sentences: list[str] = []
    for beat in (plots.OPENINGS, plots.SETTINGS, *rng.choice(PLOTS), *ending, *moral):
        if beat[0] == "?" and rng.random() < 0.5:
            continue
        sentence = rng.choice([line for line in beat if line != "?"])
        if slot["afriend"] == "":
            sentence = INTRODUCTION.sub("", sentence)
        sentences.append(sentence.format_map(slot))
        # A thing is "a red kite" once and "the red kite" from then on; a friend is introduced once.
        if "{ao}" in sentence or "{o}" in sentence:
            slot["o"] = slot["ao"] = f"the {told.thing}"
        if "{afriend}" in sentence:
            slot["afriend"] = ""
    return " ".join(sentences)


def tell(rng: Random) -> tuple[str, str]:
    """Return a request and its story, which holds the thing and the friend that the request names."""
    told = cast(rng)
    wish = request(rng, told)
    named = [word for word in (told.thing, told.friend.kind) if word in wish]
    while True:
        story = narrate(rng, told)
        if all(word in story for word in named):
            return wish, story
