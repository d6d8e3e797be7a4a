"""Spans of jobs whose time is played by the test, as a real collector gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.jobs.scripted import LIMITS, WALL_START_MS, Stage
from tests.observers.collector import Collector, Received, collecting
from tests.observers.stage import watched
from worker.jobs.correlation import Correlation
from worker.jobs.job import Job
from worker.observers.tracing import Tracing
from worker.operations.fields import WrongFields
from worker.operations.infer import Infer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MS = 1_000_000


class Traced:
    """A stage whose jobs are traced, and the collector."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._tracing = Tracing(collector.url, "worker-7", lambda: "test-model")
        self.stage: Stage = watched(lambda _: self._tracing.observe)

    def create(self, body: dict[str, Any], traceparent: str = "") -> Job:
        """Create a job with an origin."""
        owner = self.stage.create().owner
        request = Infer().parse(body, LIMITS, WrongFields())
        return self.stage.jobs.create(owner, None, request, correlation=Correlation("corr-1", traceparent))[0]

    def spans(self, job: Job) -> tuple[Received, dict[str, Received]]:
        """Return the job's span and its children. Nothing is traced afterwards."""
        self._tracing.close()
        return self._collector.job(job.id)


@pytest.fixture
def traced() -> Iterator[Traced]:
    with collecting() as collector:
        yield Traced(collector)


def test_a_span_and_its_phases_last_as_long_as_they_did(traced: Traced) -> None:
    stage = traced.stage
    job = traced.create({"prompt": "a secret", "max_tokens": 20, "temperature": 0.5, "seed": 7})
    for pause_ms, act in ((400, "start"), (60, "tokens"), (30, "tokens"), (10, "finish")):
        stage.clock.advance(pause_ms)
        if act == "start":
            stage.start(job, prompt_tokens=7, cached_tokens=3)
        elif act == "tokens":
            stage.tokens(job, "an answer")
        else:
            stage.finish(job, "length")
    whole, phases = traced.spans(job)
    begin = (WALL_START_MS + 1000) * MS
    assert (whole.begin_ns, whole.end_ns) == (begin, begin + 500 * MS)
    assert {name: (span.begin_ns - begin, span.end_ns - begin) for name, span in phases.items()} == {
        "queue": (0, 400 * MS),
        "prefill": (400 * MS, 460 * MS),
        "decode": (460 * MS, 490 * MS),
    }
    assert whole.name == "chat test-model"
    assert not whole.is_error
    assert whole.events == ["prepared", "first_token"]
    assert (
        whole.attributes.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "test-model",
            "gen_ai.request.max_tokens": 20,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.seed": 7,
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 2,
            "gen_ai.usage.cache_read.input_tokens": 3,
            "gen_ai.response.time_to_first_chunk": 0.46,
            "jobwire.correlation_id": "corr-1",
            "jobwire.principal": "ann",
        }.items()
    )
    assert whole.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert whole.resource["service.name"] == "jobwire"
    assert whole.resource["service.instance.id"] == "worker-7"


def test_texts_are_not_sent(traced: Traced) -> None:
    job = traced.create({"messages": [{"role": "user", "content": "a secret"}]})
    traced.stage.run(job, "an answer")
    whole, _ = traced.spans(job)
    assert whole.name.startswith("chat ")
    assert b"secret" not in traced._collector.bytes
    assert b"an answer" not in traced._collector.bytes


def test_the_callers_span_is_the_parent(traced: Traced) -> None:
    job = traced.create({"prompt": "Hi"}, f"00-{TRACE}-{PARENT}-01")
    traced.stage.run(job, "a")
    whole, phases = traced.spans(job)
    assert (whole.trace_id, whole.parent_id) == (TRACE, PARENT)
    assert {span.trace_id for span in phases.values()} == {TRACE}


def test_without_a_caller_it_is_a_trace_of_its_own(traced: Traced) -> None:
    job = traced.create({"prompt": "Hi"})
    traced.stage.run(job, "a")
    assert traced.spans(job)[0].parent_id == ""


def test_a_trace_that_is_not_sampled_is_not_sent(traced: Traced) -> None:
    quiet = traced.create({"prompt": "Hi"}, f"00-{TRACE}-{PARENT}-00")
    loud = traced.create({"prompt": "Hi"}, f"00-{TRACE}-{PARENT}-01")
    for job in (quiet, loud):
        traced.stage.run(job, "a")
    traced.spans(loud)
    assert quiet.id not in {span.attributes.get("gen_ai.response.id") for span in traced._collector.spans}


def test_a_failed_job_is_an_error(traced: Traced) -> None:
    job = traced.create({"prompt": "Hi"})
    traced.stage.refuse(job)
    whole, phases = traced.spans(job)
    assert whole.is_error
    assert whole.attributes["error.type"] == "engine_failed"
    assert not phases


def test_a_cancelled_job_is_none_but_says_why(traced: Traced) -> None:
    job = traced.create({"prompt": "Hi"})
    traced.stage.start(job)
    traced.stage.jobs.cancel(job.owner_name, job.id)
    whole, phases = traced.spans(job)
    assert not whole.is_error
    assert whole.attributes["jobwire.cancelled.reason"] == "client"
    assert phases.keys() == {"queue"}


def test_what_the_engine_went_through_is_told(traced: Traced) -> None:
    stage = traced.stage
    job = traced.create({"prompt": "Hi", "seed": (1 << 64) - 1})
    stage.start(job)
    stage.tokens(job, "a")
    stage.jobs.on_lost("it died")
    stage.run(job, "b")
    assert traced.spans(job)[0].events == ["prepared", "first_token", "resumed"]
