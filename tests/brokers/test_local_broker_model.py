"""The broker with the real engine and the bundled model, as `jobwire serve` uses it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers.recorder import Recorder, running
from worker.brokers.local import LocalBroker
from worker.config import Settings
from worker.engines.base import Delta, Engine, Generation
from worker.engines.choose import choose
from worker.processes.messages import Open
from worker.requests import Message, Prompt, Sampling
from worker.scheduler.loop import Loop
from worker.scheduler.works import PreparedWork, Work

SETTINGS = Settings(slots=4, engine_restart_backoff_s=0.05, engine_restart_backoff_max_s=0.2)
PROMPTS = {f"Count from {first} to {first + 40}": 200 for first in (1, 7, 20)} | {"Tell me a story about a fox.": 60}


def work(lease: str, prompt: str, temperature: float, generated: tuple[int, ...] = ()) -> Work:
    generation = Generation(
        lease=lease,
        prompt=Prompt(messages=(Message("user", prompt),)),
        sampling=Sampling(temperature=temperature, seed=11),
        max_tokens=PROMPTS[prompt],
        generated=generated,
    )
    return Work(generation=generation)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The same engine in this process."""
    load, spec, _ = choose(Open.of(SETTINGS).spec)
    engine = load(spec, lambda _: None)
    yield engine
    engine.close()


def alone(engine: Engine, prompt: str, temperature: float) -> tuple[list[int], str]:
    """Return ids and text of a prompt that has the engine to itself."""
    loop, ids, text = Loop(engine, Open.of(SETTINGS).schedule), list[int](), ""
    generation = work("alone", prompt, temperature).generation
    loop.submit(PreparedWork(prepared=engine.reader.prepare(generation, engine.info.bounds)))
    while (batch := loop.step()) is not None:
        for event in batch.events:
            if isinstance(event, Delta):
                ids += event.ids
                text += event.text
    return ids, text


async def test_an_engine_process_says_what_the_engine_says_in_process(engine: Engine) -> None:
    broker, sink = LocalBroker(SETTINGS), Recorder()
    for prompt in PROMPTS:
        broker.submit(work(prompt, prompt, 0.0))
    async with running(broker, sink):
        await sink.until_finished(*PROMPTS)
    for prompt in PROMPTS:
        ids, text = alone(engine, prompt, 0.0)
        assert sink.ids(prompt) == ids
        assert sink.text(prompt) == text


async def test_killed_again_and_again_every_work_goes_on_as_it_would_have(engine: Engine) -> None:
    """The owner of the logs resumes each work from its ids; nothing is lost, doubled or changed, at any temperature."""
    broker, journal = LocalBroker(SETTINGS), Journal()
    journal.react_to_loss = lambda: journal.submit_unfinished(broker)
    journal.submit_unfinished(broker)
    dice = random.Random(5)
    async with running(broker, journal):
        for deaths in range(1, 5):
            state = await journal.until_phase("ready")
            await journal.until_tokens(journal.tokens + dice.randrange(1, 60))
            assert state.pid is not None
            os.kill(state.pid, signal.SIGKILL)
            await journal.until_lost(deaths)
        await journal.until("all ends", lambda: not journal.unfinished())
        assert broker.state.restarts == 4
    for prompt in PROMPTS:
        assert list(journal.so_far(prompt)) == alone(engine, prompt, 0.8)[0], prompt


class Journal(Recorder):
    """Owns the ids of every prompt over all attempts, as the logs of jobs do."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: dict[str, list[str]] = {prompt: [] for prompt in PROMPTS}

    def so_far(self, prompt: str) -> tuple[int, ...]:
        return tuple(token for attempt in self.attempts[prompt] for token in self.ids(attempt))

    @property
    def tokens(self) -> int:
        return sum(len(self.so_far(prompt)) for prompt in PROMPTS)

    def unfinished(self) -> list[str]:
        return [prompt for prompt in PROMPTS if not any(map(self.finished, self.attempts[prompt]))]

    def submit_unfinished(self, broker: LocalBroker) -> None:
        for prompt in self.unfinished():
            generated = self.so_far(prompt)
            self.attempts[prompt].append(f"{prompt} #{len(self.attempts[prompt])}")
            broker.submit(work(self.attempts[prompt][-1], prompt, 0.8, generated))

    async def until_tokens(self, tokens: int) -> None:
        await self.until(f"{tokens} tokens", lambda: self.tokens >= tokens)

    async def until_lost(self, times: int) -> None:
        await self.until("the loss", lambda: len(self.lost) == times)


async def test_a_broken_model_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 1000)
    broker, sink = LocalBroker(Settings(model=str(path), engine="numpy")), Recorder()
    async with running(broker, sink):
        failed = await sink.until_phase("failed")
    assert failed.error is not None
    assert failed.error.code == "model_unavailable"
    assert "broken.gguf" in failed.error.detail


async def test_ready_within_seconds() -> None:
    broker, sink = LocalBroker(SETTINGS), Recorder()
    begun_s = time.monotonic()
    async with running(broker, sink):
        await sink.until_phase("ready")
    assert time.monotonic() - begun_s < 20
