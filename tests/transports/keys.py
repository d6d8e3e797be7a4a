"""A worker with keys, without a process: its gateway, and HTTP requests to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.jobs.scripted import Stage
from worker.jobs.job import Job
from worker.observers.narration import narrate
from worker.operations.base import Limits
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer
from worker.operations.worker_check import WorkerCheck
from worker.protocol.reading import FrameSource
from worker.protocol.tally import Tally
from worker.transports.access.credentials import Access
from worker.transports.access.origins import Origins
from worker.transports.gateway import Gateway
from worker.transports.routes import application

ANN, BOB, ROOT, OWN = "ann-has-this-secret", "bob-has-this-secret", "root-has-this-secret", "own-secret"
PAGE = "https://page.example"
"""A page of a friend, whose origin tests list."""

KEYS = f"""
[[keys]]
name = "ann"
key = "{ANN}"
weight = 3

[[keys]]
name = "bob"
key = "{BOB}"
jobs_per_minute_max = 2

[[keys]]
name = "root"
key = "{ROOT}"
admin = true
"""
JSON = {"Accept": "application/json", "Content-Type": "application/json"}


class House:
    """A gateway over a scripted engine. Without a `path` it has no keys."""

    def __init__(self, path: Path | None = None, text: str = KEYS, *, version: str = "0.1.0", **settings: Any) -> None:
        if path is not None:
            path.write_text(text, encoding="utf-8")
            settings["keys_file"] = str(path)
        self.path = path
        self.stage = Stage(**settings)
        self.access = Access(self.stage.settings, self.stage.clock, b"signs")
        operations = {operation.name: operation for operation in (Infer(), WorkerCheck())}
        built, clock, tally = self.stage.settings, self.stage.clock, Tally()
        self.gateway = Gateway(
            jobs=self.stage.jobs,
            operations=operations,
            settings=built,
            clock=clock,
            narrate=narrate,
            tally=tally,
            frame_source=FrameSource(narrate, tally, built.frame_bytes_max),
            limits=Limits.of(built),
            access=self.access,
            origins=Origins(built),
            timer=clock,
        )
        self.client = application.build(self.gateway, lambda: b"", version=version).test_client()

    def rewrite(self, text: str) -> None:
        """Change the file of keys, and let it be read."""
        assert self.path is not None
        self.path.write_text(text, encoding="utf-8")
        self.access.reload()

    async def ask(
        self, method: str, path: str, key: str | None = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Any:
        """Send a request and return the response."""
        fields = {"Host": "localhost", "Accept": "application/json", **(headers or {})}
        if key is not None:
            fields["Authorization"] = f"Bearer {key}"
        return await self.client.open(path, method=method, headers=fields, **options)


async def create(house: House, key: str | None = ANN, **fields: Any) -> dict[str, Any]:
    """Create a job that ends at once and return the answer."""
    response = await house.ask("POST", "/v1/jobs", key, json={"operation": "worker_check", **fields})
    assert response.status_code == 200, await response.get_data()
    answer: dict[str, Any] = await response.get_json()
    return answer


async def refused(response: Any) -> tuple[int, str]:
    """Return status and code of a refusal."""
    problem = json.loads(await response.get_data())
    assert response.content_type == "application/problem+json"
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"]


def make_running(house: House) -> Job:
    """Return a job of ann that waits."""
    request = house.gateway.operations["infer"].parse({"prompt": "Hi"}, house.gateway.limits, WrongFields())
    return house.stage.jobs.create(house.access.authenticate(ANN).principal, None, request)[0]
