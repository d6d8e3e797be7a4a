"""The numbers of a real worker move as its jobs do, and the dashboard asks for nothing that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

import worker.deploy
from tests.e2e.client import Socket, counting, http, post_stream, sse
from tests.support.server import Server, serving, wait_until

JSON = {"Accept": "application/json"}
KEY = {"JOBWIRE_API_KEY": "a-key-of-the-test"}
JOBS = 5
# What a family of a gauge ends with: its unit, or the things that it counts.
GAUGE_ENDINGS = (
    "_seconds", "_bytes", "_perc", "_info", "_running", "_waiting", "_live", "_slots", "_state", "_open", "_fds",
)  # fmt: skip


def families(server: Server, **options: Any) -> dict[str, Metric]:
    """Scrape a worker."""
    answer = server.get("/metrics", **options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def samples(server: Server, **options: Any) -> dict[str, float]:
    """Scrape a worker; samples by name and values of labels."""
    return {
        ":".join([sample.name, *sample.labels.values()]): sample.value
        for family in families(server, **options).values()
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A worker of this module's own, for others would move its numbers. It has worked, and has refused something."""
    with serving("--slots", "4") as running:
        assert running.post("/v1/jobs", counting(1, 9), headers={"Accept": "text/event-stream"}).status_code == 200
        assert running.get("/v1/jobs/there-is-no-such-job", headers=JSON).status_code == 404
        yield running


async def test_the_numbers_are_those_of_the_jobs(server: Server) -> None:
    before = samples(server)
    async with Socket(server) as socket:
        for last in range(10, 10 + JOBS):
            await socket.create(**counting(1, last))
        readings = await socket.finish()
        open_now = samples(server)
    async with http(server) as client:
        readings.append(await post_stream(client, **counting(1, 30)))
    after = samples(server)

    def moved(name: str) -> float:
        return after[f"jobwire_{name}"] - before[f"jobwire_{name}"]

    usages = [reading.end["usage"] for reading in readings]
    tokens = sum(usage["completion_tokens"] for usage in usages)
    assert moved("generation_tokens_total") == tokens
    assert moved("prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in usages)
    assert moved("prefix_cache_hits_total") == sum(usage["cached_tokens"] for usage in usages)
    assert moved("request_success_total:stop") == moved("jobs_ended_total:completed") == JOBS + 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_decode_time"):
        assert moved(f"{name}_seconds_count") == JOBS + 1
    assert moved("time_to_first_token_seconds_sum") == pytest.approx(
        sum(usage["ttft_ms"] for usage in usages) / 1000, abs=0.001 * len(usages)
    )
    assert moved("request_generation_tokens_sum") == tokens
    # Of every job all records of tokens but the first, of which the bundled model makes one per token or fewer.
    events = sum(frame.get("n", 1) for reading in readings for frame in reading.tokens)
    assert moved("inter_token_latency_seconds_count") == events - len(readings)
    assert moved("frames_total") == sum(len(reading.frames) for reading in readings)
    assert moved("coalesced_events_total") == events - sum(len(reading.tokens) for reading in readings)
    assert open_now["jobwire_sockets_open:websocket"] == 1
    assert (moved("sockets_opened_total:websocket"), moved("sockets_opened_total:sse")) == (1, 1)
    assert after["jobwire_engine_state:ready"] == 1
    assert after["jobwire_event_loop_lag_seconds_count"] > 0
    assert after["process_resident_memory_bytes"] > 1 << 20
    assert after["jobwire_engine_process_resident_memory_bytes"] > 1 << 20


async def test_resumes_and_refusals_are_counted(server: Server) -> None:
    before = samples(server)
    async with Socket(server) as socket:
        job_id = await socket.create(**counting(1, 200))
        reading = socket.readings[job_id]
        await socket.until(lambda: len(reading.tokens) > 2)
        await socket.cut()
    async with http(server) as client, sse(client, job_id, reading.cursor) as events:
        async for frame in events:
            reading.take(frame)
        other = await client.post("/v1/jobs", json={"temperature": 9}, headers=JSON)
        gone = await client.get("/v1/jobs/there-is-no-such-job", headers=JSON)
    async with Socket(server) as socket:
        await socket.subscribe(job_id, after="another0-3")
        assert (await socket.ask("subscribe", job_id="there-is-no-such-job"))["error"]["code"] == "job_not_found"
        await socket.send("nonsense")
        assert (await socket.receive())["error"]["code"] == "bad_frame"
    assert (other.status_code, gone.status_code) == (422, 404)
    after = samples(server)
    for name, count in {
        "resumes_total": 1,
        "resets_total": 1,
        "refusals_total:invalid_params": 1,
        "refusals_total:job_not_found": 2,
        "refusals_total:bad_frame": 1,
    }.items():
        assert after[f"jobwire_{name}"] - before.get(f"jobwire_{name}", 0) == count, name


async def test_a_dead_engine_is_seen(server: Server) -> None:
    before = samples(server)["jobwire_engine_restarts_total"]
    server.kill_engine()
    wait_until("the restart to be counted", lambda: samples(server)["jobwire_engine_restarts_total"] == before + 1)
    server.wait_ready()
    assert samples(server)["jobwire_engine_state:ready"] == 1


def _now(server: Server) -> dict[str, Any]:
    stats: dict[str, Any] = server.get("/v1/stats").json()
    return stats


async def test_stats_tell_where_the_worker_stands(server: Server) -> None:
    async with Socket(server) as socket:
        for _ in range(6):
            await socket.create(**counting(1, 400))
        await socket.until(lambda: any(reading.tokens for reading in socket.readings.values()))
        wait_until("the engine to have taken all", lambda: (_now(server)["running"], _now(server)["waiting"]) == (4, 2))
        with server.frozen_engine():
            busy = _now(server)
        for job_id in socket.readings:
            await socket.send("cancel", job_id=job_id)
        await socket.finish()
    assert busy["engine_phase"] == "ready"
    assert (busy["jobs_live"], busy["slots_total"], busy["sockets"]) == (6, 4, 1)
    assert busy["running"] + busy["waiting"] == 6
    assert 0 < busy["kv_tokens_used"] <= busy["kv_tokens_total"]
    assert busy["decode_tokens_per_s"] > 0
    wait_until("the batch to be empty", lambda: _now(server)["running"] == 0)
    idle = _now(server)
    assert (idle["jobs_live"], idle["decode_tokens_per_s"]) == (0, 0)
    assert idle["uptime_s"] > busy["uptime_s"]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_every_family_has_a_text_and_a_unit(server: Server) -> None:
    for name, family in families(server).items():
        assert family.documentation, name
        if family.type == "gauge":
            assert name.endswith(GAUGE_ENDINGS), name
        elif family.type == "histogram":
            assert name.endswith(("_seconds", "_tokens")), name
        else:
            assert family.type == "counter", name
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples), name


def test_the_names_are_those_of_the_field(server: Server) -> None:
    """Those that dashboards of vLLM ask for, but for the prefix."""
    field = [
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens",
        "generation_tokens",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "num_preemptions",
        "request_success",
    ]
    assert {f"jobwire_{name}" for name in field} <= families(server).keys()


def _expressions() -> list[str]:
    dashboard = json.loads(files(worker.deploy).joinpath("grafana.json").read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def _asked_for(expression: str) -> set[str]:
    """The names of metrics in an expression: what stands before braces."""
    return set(re.findall(r"([a-z_][a-z0-9_]*)\{", expression))


def test_the_dashboard_asks_only_for_what_is_there(server: Server) -> None:
    shown = {sample.name for family in families(server).values() for sample in family.samples}
    asked = [_asked_for(expression) for expression in _expressions()]
    assert len(asked) > 40
    assert all(asked)
    assert set().union(*asked) <= shown


def test_the_dashboard_shows_every_family(server: Server) -> None:
    asked = set().union(*map(_asked_for, _expressions()))
    ours = {name for name in families(server) if name.startswith("jobwire_") and "_process_" not in name}
    unseen = {name for name in ours if not any(one.startswith(name) for one in asked)}
    assert not unseen


def test_the_dashboard_asks_for_labels_that_are_there(server: Server) -> None:
    labels = {label for family in families(server).values() for sample in family.samples for label in sample.labels}
    grouped = {label for text in _expressions() for label in re.findall(r"sum by \((\w+)\)", text)}
    assert grouped <= labels


# ---- who may look ----------------------------------------------------------------------------------------------------


def test_a_key_is_needed_where_there_are_keys() -> None:
    bearer = {"Authorization": f"Bearer {KEY['JOBWIRE_API_KEY']}"}
    with serving(env=KEY, ready=False) as running:
        for path in ("/metrics", "/v1/stats"):
            assert running.get(path, headers=JSON).status_code == 401
            assert running.get(path, headers=bearer).status_code == 200
        assert samples(running, headers=bearer)["jobwire_refusals_total:unauthorized"] == 2


def test_metrics_may_be_open_where_there_are_keys() -> None:
    with serving("--metrics-open", env=KEY, ready=False) as running:
        assert running.get("/metrics").status_code == 200
        assert running.get("/v1/stats").status_code == 401
