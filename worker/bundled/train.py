"""Train the demo model from scratch: `python -m worker.bundled.train`. Needs torch and tokenizers, no GPU.

The text is written on the way, a function of seed and step. The learning rate is constant after a short warm-up and
falls to zero over the last part of the budget; the weights to export are a running average. A checkpoint holds all
that a later run needs to go on (`--resume`), so that a run can be stopped, extended, or brought to its end early by
resuming it with a smaller budget.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from worker.bundled import chat, corpus
from worker.bundled.model import Llama
from worker.bundled.shape import Shape

Sample = tuple[list[int], list[float]]
TOKENS_PER_STEP = 3072
TOKENS_PER_PASS = 3072
TOKENIZER_CONVERSATIONS = 20_000
WARMUP_STEPS = 100
COOLDOWN = 0.3
AVERAGE_DECAY = 0.995

EXACT_TEMPERATURE = 2.0
"""Exact answers are learned at this temperature, so that they are much surer at 1."""

EXACT_WEIGHT = 4.0
"""Exact answers weigh more: a wrong token spoils a count, while most tokens of a count are easy."""

CHECKPOINT_SECONDS = 120.0


def samples(tokenizer: Tokenizer, seed: int, step: int, context: int) -> list[Sample]:
    """Return the conversations of one step, about TOKENS_PER_STEP tokens, shortest first."""
    chosen: list[Sample] = []
    total = 0
    for talk in corpus.conversations(seed, step):
        ids, weights = chat.render(tokenizer, talk)
        if len(ids) <= context:
            chosen.append((ids, weights))
            total += len(ids)
        if total >= TOKENS_PER_STEP:
            return sorted(chosen, key=lambda sample: len(sample[0]))
    raise AssertionError("the corpus is endless")


def passes(chosen: Sequence[Sample]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield groups of samples of similar length as ids and weights (batch, length), padded on the right."""
    group: list[Sample] = []
    for sample in chosen:
        length = len(sample[0])
        if group and (length * (len(group) + 1) > TOKENS_PER_PASS or length > 8 + 1.2 * len(group[0][0])):
            yield padded(group)
            group = []
        group.append(sample)
    yield padded(group)


def padded(group: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return one tensor of ids and one of weights."""
    length = max(len(ids) for ids, _ in group)
    ids = torch.tensor([ids + [chat.PAD] * (length - len(ids)) for ids, _ in group])
    return ids, torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in group])


def losses(model: Llama, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross entropy of the free answers and of the exact answers, each in nats."""
    kind = weights[:, 1:].flatten()
    taught = kind > 0
    with torch.autocast("cpu", torch.bfloat16):
        rows = model.logits(model.features(ids[:, :-1]).flatten(0, 1)[taught]).float()
    kind = kind[taught]
    scale = torch.where(kind == 2.0, 1.0 / EXACT_TEMPERATURE, 1.0)
    each = functional.cross_entropy(rows * scale[:, None], ids[:, 1:].flatten()[taught], reduction="none")
    return each[kind == 1.0].sum(), each[kind == 2.0].sum()


@dataclass
class Run:
    """A training run: model, optimizers, running average and how far it has come."""

    seed: int
    tokenizer: Tokenizer
    model: Llama
    rate: float
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        rest = [p for n, p in self.model.named_parameters() if p.ndim == 1 or "embed" in n]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=self.rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=self.rate, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.average = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}

    def advance(self, rate: float) -> tuple[float, float]:
        """Do one optimizer step at this learning rate; return the mean loss of free and of exact tokens."""
        chosen = samples(self.tokenizer, self.seed, self.step, self.model.shape.context)
        taught = [sum(weights.count(kind) for _, weights in chosen) for kind in (1.0, 2.0)]
        sums = [0.0, 0.0]
        for ids, weights in passes(chosen):
            free, exact = losses(self.model, ids, weights)
            torch.autograd.backward((free + EXACT_WEIGHT * exact) / sum(taught))
            sums = [sums[0] + free.item(), sums[1] + exact.item()]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += sum(len(ids) for ids, _ in chosen)
        decay = min(AVERAGE_DECAY, self.step / (self.step + 10))
        for name, weight in self.model.named_parameters():
            self.average[name].lerp_(weight.detach(), 1 - decay)
        return sums[0] / max(taught[0], 1), sums[1] / max(taught[1], 1)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "shape": asdict(self.model.shape),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "tokenizer": self.tokenizer.to_str(),
            "seed": self.seed,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average = state["average"]
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def begin(options: argparse.Namespace) -> Run:
    """Return a fresh run, or the one of the checkpoint."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    state = torch.load(options.out) if options.resume else None
    if state is None:
        talks = itertools.islice(corpus.conversations(options.seed, -1), TOKENIZER_CONVERSATIONS)
        turns = itertools.chain.from_iterable(talk.turns for talk in talks)
        tokenizer = chat.train_tokenizer(text for turn in turns for text in (turn.user, turn.answer))
        return Run(options.seed, tokenizer, Llama(Shape(vocabulary=tokenizer.get_vocab_size())), options.rate)
    run = Run(state["seed"], Tokenizer.from_str(state["tokenizer"]), Llama(Shape(**state["shape"])), options.rate)
    run.restore(state)
    return run


def train(run: Run, options: argparse.Namespace, stop: threading.Event) -> None:
    """Step until the budget of steps or of minutes is spent or `stop` is set.

    Writes a checkpoint at the end and now and then, and lines of progress.
    """
    mark = saved = time.monotonic()
    shown: tuple[float, float] | None = None
    while not stop.is_set() and (spent := max(run.step / options.steps, run.seconds / 60 / options.minutes)) < 1.0:
        factor = min(1.0, (run.step + 1) / WARMUP_STEPS, (1.0 - spent) / COOLDOWN)
        loss = run.advance(options.rate * factor)
        now = time.monotonic()
        run.seconds, mark = run.seconds + now - mark, now
        shown = loss if shown is None else (shown[0] + (loss[0] - shown[0]) / 20, shown[1] + (loss[1] - shown[1]) / 20)
        if run.step % 20 == 0:
            print(
                f"step {run.step} minutes {run.seconds / 60:.1f} tokens {run.tokens} rate {options.rate * factor:.5f} "
                f"free {shown[0]:.4f} exact {shown[1]:.6f} tokens/s {run.tokens / run.seconds:.0f}",
                flush=True,
            )
        if now - saved > CHECKPOINT_SECONDS:
            run.save(options.out)
            saved = now
    run.save(options.out)


def main() -> None:
    """Parse the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo.pt"), help="checkpoint to write (and to resume)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint instead of starting anew")
    parser.add_argument("--steps", type=float, default=float("inf"), help="stop after this many steps in all")
    parser.add_argument("--minutes", type=float, default=95.0, help="stop after this many minutes in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate at its height")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    train(begin(options), options, stop)


if __name__ == "__main__":
    main()
