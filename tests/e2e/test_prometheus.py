"""A real Prometheus, set up as the documentation says, scrapes a worker that sees all and draws the dashboard."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

import worker.deploy
from tests.e2e.client import Socket, counting, http, post_job, read_sse
from tests.support.readme import OPERATING, sample
from tests.support.server import Server, serving, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed (apt-get install prometheus)"
)

KEY = "some-long-secret"
BEARER = {"Authorization": f"Bearer {KEY}"}
DEATHS = 2
WAIT_S = 60.0
VARIABLES = {"$instance": ".*", "$__rate_interval": "15m", "$__range": "15m"}
"""What Grafana inserts. The whole test is shorter than the times."""


class Prometheus:
    """A Prometheus on a free port that scrapes one worker twice a second, as its `scrape_configs` say."""

    def __init__(self, server: Server, folder: Path) -> None:
        config, log = folder / "prometheus.yml", folder / "prometheus.log"
        scrape = sample(OPERATING, "yaml", "scrape_configs").replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
        config.write_text(f"global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n{scrape}")
        places = ["--config.file", str(config), "--storage.tsdb.path", str(folder / "data")]
        with log.open("w") as output:
            command = ["prometheus", *places, "--web.listen-address", "127.0.0.1:0"]
            self._process = subprocess.Popen(command, stderr=output)
        try:
            wait_until("Prometheus", lambda: "ready to receive web requests" in log.read_text())
        except BaseException:
            self.close()
            raise
        (address,) = re.findall(r'"Listening on" address=(\S+)', log.read_text())
        self._url = f"http://{address}/api/v1/query"

    def close(self) -> None:
        """End Prometheus."""
        self._process.kill()
        self._process.wait()

    def wait_for(self, expression: str, condition: Callable[[dict[str, float]], bool]) -> None:
        """Wait for an expression's numbers. A scrape may fail on a busy machine; until the next there are none."""
        wait_until(expression, lambda: condition(self.ask(expression)), WAIT_S)

    def ask(self, expression: str) -> dict[str, float]:
        """Evaluate an expression; return its numbers by the values of their labels. Fails if it is not valid."""
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        answer = httpx.post(self._url, data={"query": expression}, timeout=30, trust_env=False).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        return {":".join(one["metric"].values()): float(one["value"][1]) for one in answer["data"]["result"]}


@contextmanager
def _scraping(server: Server, folder: Path) -> Iterator[Prometheus]:
    prometheus = Prometheus(server, folder)
    try:
        wait_until("the first scrape", lambda: 1 in prometheus.ask("jobwire_build_info").values())
        yield prometheus
    finally:
        prometheus.close()


async def _see_everything(server: Server) -> None:
    """Jobs complete, one is cancelled, one resumed, one refused, and two fail, each with the engine that it was in."""
    async with Socket(server, additional_headers=BEARER) as socket:
        await socket.run(**counting(1, 200))
        cancelled = await socket.create(**counting(1, 400))
        await socket.send("cancel", job_id=cancelled)
        await socket.finish()
        for _ in range(DEATHS):
            reading = socket.readings[await socket.create(**counting(1, 400))]
            await socket.until(lambda reading=reading: bool(reading.tokens))  # type: ignore[misc]
            server.kill_engine()
            await socket.finish()
            assert reading.end["status"] == "failed"
    async with http(server, headers=BEARER) as client:
        job_id = await post_job(client, **counting(1, 200))
        reading = await read_sse(client, job_id, limit=5)
        await read_sse(client, job_id, reading)
        assert (await client.post("/v1/jobs", json={"temperature": 9})).status_code == 400


def _expressions() -> list[str]:
    dashboard = json.loads(files(worker.deploy).joinpath("grafana.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def _are_numbers(found: dict[str, float]) -> bool:
    return bool(found) and all(map(math.isfinite, found.values()))


def _complaints(server: Server) -> str:
    """Return promtool's complaints about the metrics, names and style included."""
    metrics = server.get("/metrics", headers=BEARER).text
    check = ["promtool", "check", "metrics"]
    done = subprocess.run(check, input=metrics, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.timeout(400)
async def test_prometheus_reads_the_worker_and_draws_the_dashboard(tmp_path: Path) -> None:
    flags = ("--engine-deaths-per-job-max", "0", "--engine-restart-backoff-s", "0.05")
    with serving(*flags, env={"JOBWIRE_API_KEY": KEY}) as server:
        assert not _complaints(server)
        with _scraping(server, tmp_path) as prometheus:
            await _see_everything(server)
            assert not _complaints(server)
            wait_until("the refusal to be scraped", lambda: prometheus.ask("sum(jobwire_refusals_total)") == {"": 1.0})
            for expression in _expressions():
                prometheus.wait_for(expression, _are_numbers)
            # What happens for the first time is seen too. Prometheus extrapolates, so nothing is exact.
            restarts = "sum(increase(jobwire_engine_restarts_total[15m]))"
            prometheus.wait_for(restarts, lambda numbers: numbers.get("", 0.0) > DEATHS - 0.5)
            for counter, label, seen in (
                ("jobs_ended", "status", {"completed", "cancelled", "failed"}),
                ("refusals", "code", {"invalid_params"}),
            ):
                risen = f"sum by ({label}) (increase(jobwire_{counter}_total[15m])) > 0.5"
                prometheus.wait_for(risen, lambda numbers, seen=seen: numbers.keys() == seen)
