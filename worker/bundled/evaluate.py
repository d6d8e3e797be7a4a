"""Measure the demo model on prompts that it was not trained on: `python -m worker.bundled.evaluate`. Needs torch.

For tasks with one right answer no text has to be generated: one pass over prompt and answer shows whether greedy
decoding gives the answer, and how probable it is that sampling at temperature 0.8, with no truncation, gives it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer

from worker.bundled import chat, corpus
from worker.bundled.corpus import Conversation, Turn
from worker.bundled.model import Llama
from worker.bundled.weights import MODEL, Weights, from_checkpoint, from_gguf

TEMPERATURE = 0.8
ALONE = Conversation(None, ())
TALK = Conversation(
    "You are a helpful assistant.",
    (Turn("Hello!", "Hello! What would you like to hear?"), Turn("Count to 12", corpus.numbers(1, 12), exact=True)),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of `prompts` prompts, the share answered exactly by greedy decoding, the mean and the least probability of the
    exact answer at TEMPERATURE, and the prompts that failed greedily."""

    prompts: int
    greedy: float
    sampled: float
    least: float
    failed: tuple[str, ...]


def load(weights: Weights) -> tuple[Llama, Tokenizer]:
    """Return the model in torch, in float32, and its tokenizer."""
    model = Llama(weights.shape)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in weights.tensors.items()})
    return model.eval(), chat.build_tokenizer(weights.tokens, weights.merges)


def judge(model: Llama, tokenizer: Tokenizer, talk: Conversation) -> tuple[bool, float]:
    """Return whether greedy decoding gives the last answer, and the probability that sampling at TEMPERATURE does."""
    ids, _ = chat.render(tokenizer, talk)
    first = len(ids) - ids[::-1].index(chat.ASSISTANT)
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0, first - 1 :]
    answer = torch.tensor(ids[first:])
    chances = torch.log_softmax(logits.double() / TEMPERATURE, -1).gather(1, answer[:, None])
    return bool((logits.argmax(-1) == answer).all()), float(chances.sum().exp())


def measure(model: Llama, tokenizer: Tokenizer, turns: Sequence[Turn], before: Conversation = ALONE) -> Figures:
    """Judge every turn as the one that follows a conversation."""
    results = [judge(model, tokenizer, Conversation(before.system, (*before.turns, turn))) for turn in turns]
    chances = [chance for _, chance in results]
    failed = tuple(turn.user for turn, (right, _) in zip(turns, results, strict=True) if not right)
    count = len(turns)
    return Figures(count, 1 - len(failed) / count, sum(chances) / count, min(chances), failed)


def count_turns(rng: Random, count: int) -> list[Turn]:
    """Held-out pairs up to 250, at most 200 apart, in every phrasing.

    Not those 60 apart: while the bundled model was made, a slip of the generator taught some of them.
    """
    pairs = [(a, b) for b in range(251) for a in range(max(0, b - 200), b) if corpus.held_out("count", a, b)]
    pairs = [(a, b) for a, b in pairs if b - a != 60]
    return [
        Turn(rng.choice(corpus.COUNT_UP).format(a=a, b=b), corpus.numbers(a, b), exact=True)
        for a, b in rng.sample(pairs, count)
    ]


def common_counts(count: int) -> list[Turn]:
    """Return the counts that people and tests ask for first: from 1 up to 250, evenly spread, in the usual phrasing."""
    lasts = sorted({2 + 248 * index // max(count - 1, 1) for index in range(count)})
    return [Turn(f"Count from 1 to {b}", corpus.numbers(1, b), exact=True) for b in lasts]


def down_turns(rng: Random, count: int) -> list[Turn]:
    """Held-out pairs up to 250, less than 60 apart, downwards."""
    pairs = [(a, b) for b in range(251) for a in range(max(0, b - 59), b) if corpus.held_out("count", a, b)]
    return [
        Turn(rng.choice(corpus.COUNT_DOWN).format(a=a, b=b), corpus.numbers(b, a), exact=True)
        for a, b in rng.sample(pairs, count)
    ]


def sum_turns(rng: Random, count: int) -> list[Turn]:
    """Held-out sums and differences in every phrasing."""
    sums = [
        (a, sign, b)
        for sign in "+-"
        for a in range(100)
        for b in range(100)
        if (sign == "+" or a >= b) and corpus.held_out("sum", a, sign, b)
    ]
    return [
        Turn(rng.choice(corpus.SUM_WORDS[sign]).format(a=a, b=b), corpus.sum_answer(a, sign, b), exact=True)
        for a, sign, b in rng.sample(sums, count)
    ]


def small_sum_turns() -> list[Turn]:
    """All held-out sums and differences of numbers up to 20, in the most common phrasing."""
    return [
        Turn(f"What is {a} {sign} {b}?", corpus.sum_answer(a, sign, b), exact=True)
        for sign in "+-"
        for a in range(21)
        for b in range(21)
        if (sign == "+" or a >= b) and corpus.held_out("sum", a, sign, b)
    ]


def fact_turns() -> Iterator[Turn]:
    """Every held-out phrasing of every fact."""
    for questions, answer, key in corpus.FACTS:
        for index, question in enumerate(questions):
            if corpus.fact_held_out(key, index):
                yield Turn(question, answer)


def generate(
    model: Llama, tokenizer: Tokenizer, prompt: str, temperature: float, seed: int, tokens_max: int = 320
) -> str:
    """Return the answer to one prompt. Recomputes the whole text for every token: slow, and plain."""
    ids = [chat.BEGIN, chat.USER, *tokenizer.encode(prompt).ids, chat.END, chat.ASSISTANT]
    start, dice = len(ids), torch.Generator().manual_seed(seed)
    while len(ids) < start + tokens_max:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=dice))
        if token == chat.END:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def report(model: Llama, tokenizer: Tokenizer, prompts: int) -> None:
    """Print the figures of every task."""
    rng = Random("evaluate")  # noqa: S311 - chooses prompts, no secret
    groups = {
        "count, held-out pairs": count_turns(rng, prompts),
        "count from 1 to 2..250": common_counts(prompts),
        "count in a conversation": count_turns(rng, prompts // 4),
        "count down, held-out pairs": down_turns(rng, prompts // 4),
        "sums up to 20, held-out": small_sum_turns(),
        "sums up to 99, held-out": sum_turns(rng, prompts),
        "repeat, unseen texts": [corpus.repetition(rng) for _ in range(prompts)],
        "world, held-out phrasings": list(fact_turns()),
    }
    print("task | prompts | exact at temperature 0 | mean chance at 0.8 | least chance at 0.8")
    for name, turns in groups.items():
        f = measure(model, tokenizer, turns, TALK if name == "count in a conversation" else ALONE)
        print(f"{name} | {f.prompts} | {f.greedy:.2%} | {f.sampled:.4%} | {f.least:.4%}", flush=True)
        for prompt in f.failed[:4]:
            print(f"    failed: {prompt!r}")


SHOWN = (
    "Tell me a story about a fox",
    "Write a short story about an owl and a red kite.",
    "tell me a story about a submarine",
    "Who are you?",
    "What can you do?",
    "hello",
    "Which river flows through Brindle?",
    "Who is the mayor of Saltby?",
    "What is the capital of France?",
    "Repeat after me: the quick brown fox",
    "What is 27 + 15?",
    "Count from 7 to 30",
)


def main() -> None:
    """Parse the flags, print figures, then samples."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint of the training, instead of the bundled model")
    parser.add_argument("--gguf", type=Path, default=MODEL, help="a GGUF file of the demo model")
    parser.add_argument("--prompts", type=int, default=400, help="prompts per task")
    options = parser.parse_args()
    model, tokenizer = load(from_checkpoint(options.checkpoint) if options.checkpoint else from_gguf(options.gguf))
    report(model, tokenizer, options.prompts)
    for prompt, temperature in itertools.product(SHOWN, (0.0, TEMPERATURE)):
        print(f"\n[{temperature}] {prompt}\n    {generate(model, tokenizer, prompt, temperature, seed=1)}", flush=True)


if __name__ == "__main__":
    main()
