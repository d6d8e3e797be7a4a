"""The service over a real broker and engine processes that really die."""

from __future__ import annotations

import pytest

from tests.brokers.recorder import Recorder, running
from tests.jobs.scripted import ANN, LIMITS, ManualClock
from tests.processes import preparers
from tests.processes.engine_processes import command
from worker.brokers.local import LocalBroker
from worker.config import Settings
from worker.errors import Problem
from worker.jobs.job import Job
from worker.jobs.service import Jobs
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.scheduler.works import Batch

SETTINGS = Settings(engine_restart_backoff_s=0.01, engine_restart_backoff_max_s=0.01, engine_stall_timeout_s=0.5)


class Worker(Recorder):
    """Jobs and their broker; the recorder passes everything on."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = LocalBroker(SETTINGS, command("counting"), preparers.command("counting"))
        self.jobs = Jobs(self.broker, SETTINGS, ManualClock())
        self.react_to_state = self.jobs.on_state

    def on_batch(self, batch: Batch) -> None:
        self.jobs.on_batch(batch)
        super().on_batch(batch)

    def on_prepared(self, lease: str, prompt_tokens: int, ids: bytes) -> None:
        self.jobs.on_prepared(lease, prompt_tokens, ids)

    def on_refused(self, lease: str, error: Problem) -> None:
        self.jobs.on_refused(lease, error)

    def on_lost(self, reason: str) -> None:
        self.jobs.on_lost(reason)
        super().on_lost(reason)

    def create(self, prompt: str) -> Job:
        return self.jobs.create(
            ANN, None, Infer().parse({"prompt": prompt, "raw": True, "max_tokens": 300}, LIMITS, WrongFields())
        )[0]


@pytest.mark.parametrize("prompt", ["crash early", "hang early", "crash", "hang", "explode"])
async def test_a_prompt_that_ends_every_engine_fails_its_own_job_and_no_other(prompt: str) -> None:
    worker = Worker()
    async with running(worker.broker, worker):
        innocent = worker.create("count")
        await worker.until("tokens", lambda: innocent.text() != "")
        guilty = worker.create(prompt)
        await worker.until("all ends", lambda: not worker.jobs.live)
    assert (guilty.state, innocent.state) == ("failed", "completed")
    assert innocent.text() == "".join(f"{n} " for n in range(300))
    assert len(worker.lost) == SETTINGS.engine_deaths_per_job_max + 1
