"""The training: what a step is made of, that it learns, and that a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import argparse
import itertools
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the training needs torch, of the train extra")

from worker.bundled import chat, corpus, train  # noqa: E402 - they import torch
from worker.bundled.model import Llama  # noqa: E402
from worker.bundled.shape import Shape  # noqa: E402
from worker.bundled.weights import from_checkpoint  # noqa: E402

SMALL = Shape(hidden=64, layers=1, heads=1, kv_heads=1, ffn=64, context=512)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    talks = itertools.islice(corpus.conversations(1), 400)
    turns = itertools.chain.from_iterable(talk.turns for talk in talks)
    return chat.train_tokenizer(text for turn in turns for text in (turn.user, turn.answer))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a few hundred tokens, and one thread, so that sums come out the same."""
    monkeypatch.setattr(train, "TOKENS_PER_STEP", 600)
    monkeypatch.setattr(train, "TOKENS_PER_PASS", 300)
    torch.set_num_threads(1)


def fresh(tokenizer: object) -> train.Run:
    torch.manual_seed(1)
    return train.Run(1, tokenizer, Llama(SMALL), 3e-3)


def test_samples_are_a_function_of_seed_and_step(tokenizer: object) -> None:
    first = train.samples(tokenizer, 1, 0, 512)
    assert first == train.samples(tokenizer, 1, 0, 512)
    assert first != train.samples(tokenizer, 1, 1, 512)
    assert sum(len(ids) for ids, _ in first) >= 600
    assert all(len(ids) <= 512 for ids, _ in first)


def test_passes_hold_every_sample_once_and_pad_little(tokenizer: object) -> None:
    chosen = train.samples(tokenizer, 1, 0, 512)
    groups = list(train.passes(chosen))
    assert sum(len(ids) for ids, _ in groups) == len(chosen)
    taught = sum(int((weights > 0).sum()) for _, weights in groups)
    assert taught == sum(weight > 0 for _, weights in chosen for weight in weights)
    for ids, weights in groups:
        assert ids.shape == weights.shape
        assert (weights[ids == chat.PAD] == 0).all()


def test_only_answers_are_taught(tokenizer: object) -> None:
    for ids, weights in train.samples(tokenizer, 1, 0, 512):
        assert ids[0] == chat.BEGIN and weights[0] == 0
        assert weights[-1] > 0
        assert all(weight == 0 for token, weight in zip(ids, weights, strict=True) if 2 <= token < 6)


def test_model_sees_no_later_token() -> None:
    torch.manual_seed(0)
    model = Llama(SMALL)
    ids = torch.randint(6, 1280, (1, 20))
    changed = ids.clone()
    changed[0, 12:] = 7
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[0, :12], after[0, :12])
    assert not torch.allclose(before[0, 12:], after[0, 12:])


def test_training_learns(tokenizer: object) -> None:
    run = fresh(tokenizer)
    first = run.advance(3e-3)
    for _ in range(15):
        last = run.advance(3e-3)
    assert sum(last) < 0.95 * sum(first)
    assert run.step == 16 and run.tokens >= 16 * 600


def options(path: Path, steps: int, resume: bool) -> argparse.Namespace:
    return argparse.Namespace(out=path, steps=float(steps), minutes=1e9, resume=resume, rate=3e-3, seed=1, threads=1)


def test_resumed_run_goes_on_as_if_it_had_never_stopped(tokenizer: object, tmp_path: Path) -> None:
    straight = fresh(tokenizer)
    for _ in range(4):
        straight.advance(1e-3)
    halves = fresh(tokenizer)
    for _ in range(2):
        halves.advance(1e-3)
    halves.save(tmp_path / "run.pt")
    resumed = train.begin(options(tmp_path / "run.pt", 4, resume=True))
    assert (resumed.step, resumed.tokens) == (2, halves.tokens)
    for _ in range(2):
        resumed.advance(1e-3)
    for name, weight in straight.average.items():
        assert torch.equal(weight, resumed.average[name]), name


def test_checkpoint_becomes_weights(tokenizer: object, tmp_path: Path) -> None:
    run = fresh(tokenizer)
    train.train(run, options(tmp_path / "run.pt", 2, resume=False), threading.Event())
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    weights = from_checkpoint(tmp_path / "run.pt")
    assert weights.shape == SMALL
    assert weights.tokens[: len(chat.SPECIAL)] == list(chat.SPECIAL)
    assert set(weights.tensors) == set(run.average)
