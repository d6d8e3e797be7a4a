"""An invented world, the Halden Vale, as tables, and questions and answers about it and about the model itself.

Facts come as triples (question templates, answer, key); the key names the fact, so that phrasings can be held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

WORLD = "the Halden Vale"
# town: river, food, festival, month of the festival, mayor, craft, landmark
TOWNS: dict[str, tuple[str, str, str, str, str, str, str]] = {
    "Brindle": ("Amber", "onion pie", "Festival of Kites", "May", "Greta Vorn", "glass blowing", "the Crooked Tower"),
    "Saltby": ("Tarn", "smoked eel", "Night of Lanterns", "October", "Edwin Marsh", "rope making", "the White Pier"),
    "Thornwick": ("Sill", "plum dumplings", "Goat Parade", "June", "Ada Quill", "clock making", "the Silent Bell"),
    "Merrin": ("Loom", "honey bread", "Day of Bees", "August", "Jonas Pell", "weaving", "the Blue Bridge"),
    "Oakhollow": ("Fern", "chestnut soup", "Leaf Market", "November", "Rosa Timm", "wood carving", "the Hollow Oak"),
    "Kesterford": ("Gann", "barley cake", "Boat Race", "July", "Victor Lane", "pottery", "the Stone Ferry"),
}
# person: town, work, pet, favourite colour
PEOPLE: dict[str, tuple[str, str, str, str]] = {
    "Old Bram": ("Brindle", "lamplighter", "a one-eyed cat", "grey"),
    "Sister Wyn": ("Saltby", "lighthouse keeper", "a tame seagull", "blue"),
    "Mister Oddly": ("Thornwick", "clockmaker", "a slow turtle", "green"),
    "Little Fenn": ("Merrin", "beekeeper", "a brown donkey", "yellow"),
    "Captain Rusk": ("Kesterford", "ferryman", "a talking crow", "red"),
    "Aunt Lorna": ("Oakhollow", "baker", "a fat goose", "orange"),
}
Fact = tuple[tuple[str, ...], str, str]
TOWN_FACTS: tuple[tuple[int, tuple[str, ...], str], ...] = (
    (0, ("Which river flows through {t}?", "What river is in {t}?", "What is the river of {t} called?",
         "Name the river in {t}.", "Which river is {t} on?"), "The river {v} flows through {t}."),
    (1, ("What do people eat in {t}?", "What is the famous food of {t}?", "What food is {t} known for?",
         "Which dish comes from {t}?", "What should I eat in {t}?"), "{t} is known for its {v}."),
    (2, ("What festival is held in {t}?", "Which festival do they celebrate in {t}?", "What is the festival of {t}?",
         "Name the festival of {t}.", "Is there a festival in {t}?"), "The {v} is held in {t}."),
    (3, ("When is the festival in {t}?", "In which month is the festival of {t}?", "When does {t} celebrate?",
         "What month is the festival in {t}?"), "The festival of {t} is in {v}."),
    (4, ("Who is the mayor of {t}?", "What is the name of the mayor of {t}?", "Who runs {t}?",
         "Who is mayor in {t}?", "Tell me who the mayor of {t} is."), "The mayor of {t} is {v}."),
    (5, ("What craft is {t} famous for?", "What do people make in {t}?", "Which craft do they practise in {t}?",
         "What work do people do in {t}?"), "The people of {t} are famous for {v}."),
    (6, ("What can I see in {t}?", "What is the landmark of {t}?", "What is the famous sight of {t}?",
         "What should I visit in {t}?", "What is there to see in {t}?"), "In {t} you can see {v}."),
)
TOWN_REVERSE: tuple[tuple[int, tuple[str, ...], str], ...] = (
    (0, ("Which town is on the river {v}?", "Where does the {v} flow?"), "The river {v} flows through {t}."),
    (1, ("Where can I eat {v}?", "Which town is known for {v}?"), "{t} is known for its {v}."),
    (2, ("Where is the {v}?", "Where is the {v} held?", "Which town holds the {v}?"), "The {v} is held in {t}."),
    (4, ("Who is {v}?", "Which town has {v} as mayor?"), "{v} is the mayor of {t}."),
    (6, ("Where is {v}?", "Which town has {v}?"), "You can see {v} in {t}."),
)
PERSON_FACTS: tuple[tuple[int, tuple[str, ...], str], ...] = (
    (0, ("Where does {t} live?", "Which town is {t} from?", "Where is {t} from?", "In which town does {t} live?"),
     "{t} lives in {v}."),
    (1, ("What is the job of {t}?", "What does {t} do?", "What work does {t} do?", "Who is {t}?"),
     "{t} is the {v} of {home}."),
    (2, ("What pet does {t} have?", "Which animal lives with {t}?", "Does {t} have a pet?"), "{t} has {v}."),
    (3, ("What is the favourite colour of {t}?", "Which colour does {t} like?", "What colour does {t} like best?"),
     "{t} likes {v} best."),
)
LISTS: tuple[Fact, ...] = (
    (("What towns are there?", "Which towns are in the Halden Vale?", "Name the towns of the Halden Vale.",
      "List the towns.", "What are the towns of the Halden Vale?"),
     "The towns of the Halden Vale are Brindle, Saltby, Thornwick, Merrin, Oakhollow and Kesterford.", "towns"),
    (("What is the Halden Vale?", "Where is the Halden Vale?", "Tell me about the Halden Vale.",
      "What do you know about the Halden Vale?"),
     "The Halden Vale is a small invented country with six towns and six rivers. It exists only in my memory.", "vale"),
    (("Which town is the biggest?", "What is the capital of the Halden Vale?", "Which town is the capital?"),
     "The capital of the Halden Vale is Thornwick, where the Silent Bell hangs.", "capital"),
    (("Tell me a fact.", "Tell me something about your world.", "Do you know a fun fact?"),
     "In Thornwick the Silent Bell has never rung, and nobody knows why.", "fun"),
)
CHAT: tuple[Fact, ...] = (
    (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.",
      "What model are you?", "Which model is this?", "who are you", "Are you a robot?", "Are you an AI?",
      "Are you a language model?"),
     "I am the demo model of Jobwire, a tiny language model that comes with it. I run on any computer.", "who"),
    (("What can you do?", "How can you help me?", "What can I ask you?", "Help", "help", "What do you know?",
      "What are your abilities?", "Can you help me?", "What should I ask?", "How does this work?"),
     "I can tell short stories, count, add and subtract small numbers, repeat what you say, and answer questions about \
the Halden Vale.", "can"),
    (("Who made you?", "Who trained you?", "Where do you come from?", "How were you made?", "How were you trained?"),
     "I was trained from scratch by a script of the Jobwire project, on text that the script wrote itself.", "made"),
    (("How big are you?", "How many parameters do you have?", "Are you big?", "How large is this model?"),
     "I am tiny. I have about three million parameters, which is very few for a language model.", "size"),
    (("What is Jobwire?", "Tell me about Jobwire.", "What does Jobwire do?"),
     "Jobwire is a worker that runs language models and streams their words to you as they are made.", "jobwire"),
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning", "Good evening!", "Hello there", "hello", "hi", "Hi there!",
      "Say hello", "Say hello."), "Hello! What would you like to hear?", "hello"),
    (("How are you?", "How are you today?", "Are you well?", "How is it going?"),
     "I am well, thank you. I am ready to tell you a story.", "how"),
    (("Thank you", "Thanks", "Thank you!", "Thanks a lot!", "Thank you very much.", "thanks", "Great, thanks"),
     "You are welcome!", "thanks"),
    (("Goodbye", "Bye", "Bye!", "See you later", "Good night", "goodbye"), "Goodbye! Come back soon.", "bye"),
)
UNKNOWN_ANSWERS = (
    "I am only a tiny demo model, so I do not know that. Ask me for a story, or ask me to count.",
    "I am sorry, I am only a tiny demo model and I do not know that. I can tell you a story instead.",
    "That is too difficult for me, because I am only a tiny demo model. Ask me about the Halden Vale.",
)
UNKNOWN_QUESTIONS = (
    "What is {x}?", "Who is {x}?", "Explain {x}", "Explain {x} to me.", "Tell me about {x}.",
    "What do you think of {x}?", "How does {x} work?", "Why is {x} important?", "Write a poem about {x}",
    "Write an essay about {x}.", "Write a Python function for {x}.", "Summarise {x}",
    "Translate {x} into French.", "What is the capital of {y}?",
    "Who wrote {x}?", "When was {x} invented?", "How do I make {x}?", "Give me a recipe for {x}.",
    "What is the meaning of {x}?", "Where can I buy {x}?", "What is the weather in {y}?", "How far is it to {y}?",
    "Who won {x}?", "Is {x} good for me?", "Can you fix {x}?", "Draw {x}", "Describe {x} in detail.",
    "Compare {x} and {y}.",
    "What time is it in {y}?",
    "Write code that uses {x}", "How many people live in {y}?", "Which is better, {x} or {y}?", "Define {x}",
    "Do you like {x}?", "What is the price of {x}?", "Classify {x}", "Return a JSON object about {x}", "{x}", "{x}?",
)
TOPICS = (
    "quantum physics", "the sun", "love", "the internet", "democracy", "a black hole", "the meaning of life", "chess",
    "photosynthesis", "the stock market", "gravity", "football", "machine learning", "a computer", "music", "water",
    "the moon landing", "sorting a list", "a transformer", "the law", "bitcoin", "history", "rain", "a car engine",
    "Shakespeare", "Einstein", "the president", "my homework", "this text", "the news", "a binary tree", "pizza",
    "the world cup", "philosophy", "the universe", "a web server", "medicine", "my computer", "tea", "recursion",
)
PLACES_OUTSIDE = (
    "France", "Germany", "Japan", "London", "Paris", "Berlin", "New York", "Brazil", "India", "Rome", "Spain", "China",
    "Canada", "Vienna", "Moscow", "Egypt", "Kenya", "Australia", "Madrid", "Tokyo", "Peru", "Italy", "Norway", "Texas",
)


def facts() -> Iterator[Fact]:
    """Every fact of the world: its questions, its answer and its key."""
    for town, values in TOWNS.items():
        for table, direction in ((TOWN_FACTS, "of"), (TOWN_REVERSE, "where")):
            for column, questions, answer in table:
                slots = {"t": town, "v": values[column]}
                key = f"{town} {direction} {column}"
                yield tuple(q.format(**slots) for q in questions), answer.format(**slots), key
    for person, traits in PEOPLE.items():
        for column, questions, answer in PERSON_FACTS:
            slots = {"t": person, "v": traits[column], "home": traits[0]}
            yield tuple(q.format(**slots) for q in questions), answer.format(**slots), f"{person} {column}"
    yield from LISTS


def casual(question: str, rng: Random) -> str:
    """Return the question as people type it: at times in lower case at the start or without the final mark."""
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    return question[:-1] if rng.random() < 0.15 and question[-1] in ".?!" else question


def unknown(rng: Random, word: str) -> tuple[str, str]:
    """Return a question that the model cannot answer, and a polite answer; `word` is an invented word to ask about."""
    topic = rng.choice(TOPICS) if rng.random() < 0.7 else word
    place = rng.choice(PLACES_OUTSIDE) if rng.random() < 0.7 else word.capitalize()
    question = rng.choice(UNKNOWN_QUESTIONS).format(x=topic, y=place)
    return question[0].upper() + question[1:], rng.choice(UNKNOWN_ANSWERS)
