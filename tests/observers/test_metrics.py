"""Metrics of jobs whose engine and time are played by the test, as Prometheus would read them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.jobs.scripted import INFO, STATS, Stage
from tests.observers.stage import watched
from worker.brokers.base import EngineState
from worker.observers.metrics import BETWEEN_TOKENS_S, Exposition, Histogram, JobMetrics, Sources
from worker.operations.fields import WrongFields
from worker.operations.status import Status
from worker.protocol.tally import Tally


class Watched:
    """A stage, its metrics, and what a scrape says."""

    def __init__(self) -> None:
        self.stage: Stage = watched(self._metrics)
        self.stage.jobs._news.token_observers = (self.metrics.observe_tokens,)
        self.tally = Tally()
        self.engine = EngineState(phase="ready", info=INFO, stats=STATS)
        self.opened: Counter[str] = Counter()
        sources = Sources(
            engine=lambda: self.engine,
            live_jobs=lambda: self.stage.jobs.live,
            open_sockets=lambda: {"websocket": 2},
            opened_sockets=self.opened,
            room=SimpleNamespace(known=3, keyless=1, evicted=2),
            tally=self.tally,
            codes=["queue_full", "forbidden"],
        )
        self.exposition = Exposition(self.metrics, sources)

    def _metrics(self, clock: object) -> object:
        self.metrics = JobMetrics(clock)  # type: ignore[arg-type]
        return self.metrics.observe

    def scrape(self) -> dict[str, float]:
        """Return every sample by its name and labels."""
        return {
            sample.name + "".join(f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.exposition.text().decode())
            for sample in family.samples
        }


@pytest.fixture
def worker() -> Watched:
    return Watched()


def test_the_phases_of_a_job_are_told_apart(worker: Watched) -> None:
    stage = worker.stage
    job = stage.create()
    stage.clock.advance(400)
    stage.start(job, prompt_tokens=7, cached_tokens=3)
    stage.clock.advance(60)
    stage.tokens(job, "a")
    for text in "bcd":
        stage.clock.advance(30)
        stage.tokens(job, text)
    stage.clock.advance(10)
    stage.finish(job, "length")
    seen = worker.scrape()
    for name, seconds in {
        "time_to_first_token_seconds": 0.46,
        "inter_token_latency_seconds": 0.09,
        "request_time_per_output_token_seconds": 0.03,
        "e2e_request_latency_seconds": 0.56,
        "request_queue_time_seconds": 0.4,
        "request_prefill_time_seconds": 0.06,
        "request_decode_time_seconds": 0.09,
        "request_inference_time_seconds": 0.15,
        "request_prompt_tokens": 7,
        "request_generation_tokens": 4,
    }.items():
        assert seen[f"jobwire_{name}_sum"] == pytest.approx(seconds), name
        assert seen[f"jobwire_{name}_count"] == (3 if name.startswith("inter") else 1), name
    assert seen["jobwire_inter_token_latency_seconds_bucket{le=0.025}"] == 0
    assert seen["jobwire_inter_token_latency_seconds_bucket{le=0.05}"] == 3
    assert seen["jobwire_prompt_tokens_total"] == seen["jobwire_prefix_cache_queries_total"] == 7
    assert seen["jobwire_prefix_cache_hits_total"] == 3
    assert seen["jobwire_generation_tokens_total"] == 4
    assert seen["jobwire_request_success_total{finished_reason=length}"] == 1
    assert seen["jobwire_request_success_total{finished_reason=stop}"] == 0


def test_a_bucket_holds_its_upper_end() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    family = histogram.family("x", "y")
    buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name == "x_bucket"}
    assert buckets == {"1.0": 2, "2.0": 4, "+Inf": 5}


def test_gaps_are_those_of_one_choice(worker: Watched) -> None:
    """Two choices that step together are not two tokens without a pause."""
    stage = worker.stage
    job = stage.create(prompt="Hi", n=2)
    stage.start(job)
    for _ in range(3):
        stage.clock.advance(50)
        stage.tokens(job, "a", index=0)
        stage.tokens(job, "b", index=1)
    stage.finish(job, index=0)
    stage.finish(job, index=1)
    seen = worker.scrape()
    assert seen["jobwire_inter_token_latency_seconds_count"] == 4
    assert seen["jobwire_inter_token_latency_seconds_sum"] == pytest.approx(0.2)
    assert seen["jobwire_time_to_first_token_seconds_count"] == 1
    assert seen["jobwire_generation_tokens_total"] == 6


def test_nothing_is_kept_of_jobs_that_ended(worker: Watched) -> None:
    stage = worker.stage
    for n in (1, 3):
        job = stage.create(prompt="Hi", n=n)
        stage.start(job)
        for index in range(n):
            stage.tokens(job, "a", index=index)
        stage.jobs.cancel("ann", job.id)
    assert not worker.metrics._latest_ms


def test_every_end_is_counted_but_only_answers_have_latencies(worker: Watched) -> None:
    stage = worker.stage
    stage.run(stage.create(), "a", "b")
    stage.jobs.cancel("ann", stage.create().id)
    stage.refuse(stage.create())
    late = stage.create(prompt="Hi", deadline_ms=10)
    stage.clock.advance(20)
    stage.jobs.sweep()
    assert late.state == "expired"
    seen = worker.scrape()
    ends = {status: seen[f"jobwire_jobs_ended_total{{status={status}}}"] for status in worker.metrics.statuses}
    assert ends == {"completed": 1, "cancelled": 1, "failed": 1, "expired": 1}
    assert seen["jobwire_e2e_request_latency_seconds_count"] == 1
    assert seen["jobwire_jobs_live"] == 0


def test_a_job_without_engine_has_no_latency(worker: Watched) -> None:
    stage = worker.stage
    request = Status(lambda: worker.engine).parse({}, None, WrongFields())  # type: ignore[arg-type]
    stage.jobs.create(stage.create().owner, None, request)
    seen = worker.scrape()
    assert seen["jobwire_jobs_ended_total{status=completed}"] == 1
    assert seen["jobwire_time_to_first_token_seconds_count"] == 0


def test_a_prompt_counts_once_whatever_the_engine_does(worker: Watched) -> None:
    stage = worker.stage
    job = stage.create()
    stage.start(job, prompt_tokens=5)
    stage.tokens(job, "a")
    stage.jobs.on_lost("it died")
    stage.start(job, prompt_tokens=5)
    stage.tokens(job, "b")
    stage.finish(job)
    seen = worker.scrape()
    assert seen["jobwire_prompt_tokens_total"] == 5
    assert seen["jobwire_generation_tokens_total"] == 2
    assert seen["jobwire_time_to_first_token_seconds_count"] == 1


def test_the_engine_as_it_stands(worker: Watched) -> None:
    seen = worker.scrape()
    assert (seen["jobwire_num_requests_running"], seen["jobwire_num_requests_waiting"]) == (1, 2)
    assert seen["jobwire_kv_cache_usage_perc"] == 0.1
    assert seen["jobwire_engine_step_seconds"] == 0.005
    assert seen["jobwire_engine_slots"] == INFO.slots
    assert seen["jobwire_engine_state{state=ready}"] == 1
    worker.engine = msgspec.structs.replace(worker.engine, phase="restarting", stats=None, restarts=3)
    worker.stage.create()
    seen = worker.scrape()
    assert seen["jobwire_engine_state{state=ready}"] == 0
    assert seen["jobwire_engine_state{state=restarting}"] == 1
    assert seen["jobwire_engine_restarts_total"] == 3
    assert seen["jobwire_num_requests_waiting"] == 1
    assert seen["jobwire_kv_cache_usage_perc"] == 0


def test_what_was_delivered_and_refused(worker: Watched) -> None:
    worker.tally.frames, worker.tally.merged, worker.tally.resumes, worker.tally.resets = 10, 4, 2, 1
    worker.tally.refusals["queue_full"] += 3
    worker.opened["sse"] += 5
    seen = worker.scrape()
    assert seen["jobwire_frames_total"] == 10
    assert seen["jobwire_coalesced_events_total"] == 4
    assert (seen["jobwire_resumes_total"], seen["jobwire_resets_total"]) == (2, 1)
    assert seen["jobwire_refusals_total{code=queue_full}"] == 3
    assert seen["jobwire_refusals_total{code=forbidden}"] == 0
    assert seen["jobwire_sockets_open{kind=websocket}"] == 2
    assert seen["jobwire_sockets_open{kind=sse}"] == 0
    assert seen["jobwire_sockets_opened_total{kind=sse}"] == 5
    assert seen["jobwire_connections_open{kind=known}"] == 3
    assert seen["jobwire_connections_open{kind=keyless}"] == 1
    assert seen["jobwire_connections_evicted_total"] == 2


def test_two_workers_in_one_process_share_nothing() -> None:
    one, other = Watched(), Watched()
    one.stage.run(one.stage.create(), "a")
    assert one.scrape()["jobwire_generation_tokens_total"] == 1
    assert other.scrape()["jobwire_generation_tokens_total"] == 0


def test_buckets_go_up() -> None:
    assert list(BETWEEN_TOKENS_S) == sorted(set(BETWEEN_TOKENS_S))
    metrics = JobMetrics(SimpleNamespace())  # type: ignore[arg-type]
    for histogram in vars(metrics).values():
        if isinstance(histogram, Histogram):
            assert list(histogram.bounds) == sorted(set(histogram.bounds))
