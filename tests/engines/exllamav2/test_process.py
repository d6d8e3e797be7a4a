"""ExLlamaV2 in an engine process of its own: 32 works at once, and kill -9 again and again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.brokers.recorder import Recorder, running
from tests.contracts.engines import chat, exported
from tests.engines.exllamav2 import cpu
from tests.engines.exllamav2.host import COMMAND, PREPARER
from worker.brokers.local import LocalBroker
from worker.config import Settings
from worker.engines.base import Delta, Generation, Prefilled
from worker.requests import Sampling
from worker.scheduler.works import Started, Work

if cpu.missing():
    pytest.skip(f"ExLlamaV2 on the CPU: {cpu.missing()}", allow_module_level=True)

# Importing torch and the library takes most of it, on a machine that is busy.
PATIENCE_S = 300.0
WORKS = 32
KILLS = 3


class Journal(Recorder):
    """Owns the tokens of every work over all attempts, as the logs of jobs do, and submits again what is unfinished."""

    def __init__(self, broker: LocalBroker, ranges: list[tuple[int, int]], temperature: float) -> None:
        super().__init__()
        self.ranges = ranges
        self._broker = broker
        self._temperature = temperature
        self._attempts: list[list[str]] = [[] for _ in ranges]
        self.react_to_loss = self.submit_unfinished

    def so_far(self, number: int) -> tuple[int, ...]:
        return tuple(token for attempt in self._attempts[number] for token in self.ids(attempt))

    def whole_text(self, number: int) -> str:
        return "".join(self.text(attempt) for attempt in self._attempts[number])

    @property
    def tokens(self) -> int:
        return sum(len(event.ids) for event in self.events if isinstance(event, Delta))

    def unfinished(self) -> list[int]:
        return [number for number, tried in enumerate(self._attempts) if not any(map(self.finished, tried))]

    def submit_unfinished(self) -> None:
        for number in self.unfinished():
            first, last = self.ranges[number]
            generated = self.so_far(number)
            name = f"{number} #{len(self._attempts[number])}"
            self._attempts[number].append(name)
            sampling = Sampling(temperature=self._temperature, seed=number)
            prompt = chat(f"Count from {first} to {last}")
            wanted = Generation(lease=name, prompt=prompt, sampling=sampling, max_tokens=200, generated=generated)
            self._broker.submit(Work(generation=wanted))

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"waited {PATIENCE_S} s for {what}; phases {self.phases}, lost {self.lost}") from None


@asynccontextmanager
async def working(temperature: float) -> AsyncIterator[Journal]:
    """32 counts, submitted to an engine process that is being started."""
    settings = Settings(
        model=str(Path(exported().name) / "demo"),
        slots=16,
        context_tokens=512,
        engine_restart_backoff_s=0.05,
        engine_restart_backoff_max_s=0.2,
    )
    broker = LocalBroker(settings, COMMAND, PREPARER)
    journal = Journal(broker, [(first, first + 24) for first in range(1, WORKS + 1)], temperature)
    journal.submit_unfinished()
    async with running(broker, journal):
        yield journal


def assert_exact(journal: Journal) -> None:
    for number, (first, last) in enumerate(journal.ranges):
        assert journal.whole_text(number) == " ".join(map(str, range(first, last + 1)))


async def test_32_works_share_the_engine_and_every_text_is_exact() -> None:
    async with working(temperature=0.0) as journal:
        await journal.until("all ends", lambda: not journal.unfinished())
        info = journal.states[-1].info
        assert info is not None and (info.engine, info.details["attention"]) == ("exllamav2", "sdpa")
    assert_exact(journal)
    assert max(batch.stats.running for batch in journal.batches) == 16
    assert sum(isinstance(event, Started) for event in journal.events) == WORKS
    assert any(isinstance(event, Prefilled) for event in journal.events)
    last = journal.batches[-1].stats
    assert (last.running, last.waiting, last.kv_tokens_used) == (0, 0, 0)


@pytest.mark.timeout(900)
async def test_killed_again_and_again_every_text_stays_exact() -> None:
    dice = random.Random(5)
    async with working(temperature=0.7) as journal:
        for deaths in range(1, KILLS + 1):
            state = await journal.until_phase("ready")
            goal = journal.tokens + dice.randrange(40, 200)
            await journal.until("some tokens", lambda: journal.tokens >= goal)  # noqa: B023 (awaited here)
            assert state.pid is not None
            os.kill(state.pid, signal.SIGKILL)
            await journal.until("the loss", lambda: len(journal.lost) == deaths)  # noqa: B023 (awaited here)
        await journal.until("all ends", lambda: not journal.unfinished())
    assert_exact(journal)
    assert all("signal 9" in reason for reason in journal.lost)
