"""Traces for OpenTelemetry: a span per job, with children for its queue, prefill and decode, sent over OTLP and HTTP.

A job's spans are made when it ends, from the times that it has kept: until then they cost nothing. Attributes are those
of the semantic conventions for generative AI; the parent is the trace context that the request carried. Only numbers
and names are sent, no text of prompts or answers.

Needs the extra `otel`: importing this module without it raises ImportError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from worker import __version__
from worker.events import (
    TERMINAL,
    Cancelled,
    Expired,
    Failed,
    Finished,
    FirstToken,
    Preempted,
    Record,
    Resumed,
    Terminal,
    Tokenized,
)
from worker.jobs.job import Job

TRACES_PATH = "/v1/traces"
NS_PER_MS = 1_000_000
EXPORT_TIMEOUT_S = 5.0
"""How long one batch of spans may take to send."""

INT_END = 1 << 63
"""Attributes that are numbers must be below this."""

Attributes: TypeAlias = dict[str, AttributeValue]


class Tracing:
    """Observes all jobs. `endpoint` is the collector's URL, with or without TRACES_PATH; `model` names what runs now.

    Spans are sent by a thread of the SDK, in batches; those that cannot be sent are dropped, with a line in the log.
    """

    def __init__(self, endpoint: str, worker_id: str, model: Callable[[], str]) -> None:
        resource = Resource({
            "service.name": "jobwire",
            "service.version": __version__,
            **({"service.instance.id": worker_id} if worker_id else {}),
        })  # fmt: skip
        url = endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
        # A caller that does not sample its trace gets no spans of ours either.
        self._provider = TracerProvider(ParentBased(ALWAYS_ON), resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S)))
        self._tracer: Tracer = self._provider.get_tracer("jobwire", __version__)
        self._model = model

    def observe(self, job: Job, record: Record) -> None:
        """Make the spans of a job that ends with this record."""
        event = record.event
        if isinstance(event, TERMINAL):
            self._trace(job, record.at_ms, event)

    def close(self) -> None:
        """Send the spans that are left. May wait for the collector: do not call it on an event loop."""
        self._provider.shutdown()

    def _trace(self, job: Job, ended_at_ms: int, event: Terminal) -> None:
        parent = TraceContextTextMapPropagator().extract({"traceparent": job.correlation.traceparent})
        operation, model = _operation(job), self._model()
        span = self._tracer.start_span(
            f"{operation} {model}".rstrip(),
            parent,
            SpanKind.SERVER,
            {**_request(job, operation, model), **_outcome(job, event)},
            start_time=job.created_at_ms * NS_PER_MS,
        )
        if isinstance(event, Failed | Expired):
            span.set_status(Status(StatusCode.ERROR, event.error.code))
        for name, at_ms, attributes in _happenings(job):
            span.add_event(name, attributes, at_ms * NS_PER_MS)
        self._phases(job, span)
        span.end(ended_at_ms * NS_PER_MS)

    def _phases(self, job: Job, span: Span) -> None:
        """Add a child for each phase that the job has completed."""
        timing = job.timing
        times = (timing.created, timing.admitted, timing.first_token, timing.last_token)
        context = set_span_in_context(span)
        for name, begin, end in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
            if begin is not None and end is not None:
                child = self._tracer.start_span(name, context, start_time=_wall_ns(job, begin))
                child.end(_wall_ns(job, end))


def _wall_ns(job: Job, monotonic_ms: float) -> int:
    """Return the wall time of a moment in a job's life, so that its phases are as long as they were measured."""
    return job.created_at_ms * NS_PER_MS + round((monotonic_ms - job.timing.created) * NS_PER_MS)


def _operation(job: Job) -> str:
    if job.request.operation != "infer":
        return job.request.operation
    return "chat" if job.request.prompt.messages else "text_completion"


def _request(job: Job, operation: str, model: str) -> Attributes:
    """Return the request. Neutral sampling settings are left out."""
    sampling = job.request.sampling
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "jobwire",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": job.id,
        "gen_ai.request.max_tokens": job.request.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.choice.count": job.request.n,
        "jobwire.principal": job.owner_name,
        "jobwire.priority": job.priority,
        "jobwire.correlation_id": job.correlation.correlation_id,
    }
    if job.request.seed is not None and job.request.seed < INT_END:
        attributes["gen_ai.request.seed"] = job.request.seed
    return attributes


def _outcome(job: Job, event: Terminal) -> Attributes:
    usage = event.usage
    attributes: Attributes = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "jobwire.status": job.state,
    }
    if usage.ttft_ms is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = usage.ttft_ms / 1000
    match event:
        case Finished():
            attributes["gen_ai.response.finish_reasons"] = event.finish_reasons or (event.finish_reason,)
        case Cancelled():
            attributes["jobwire.cancelled.reason"] = event.reason
        case _:
            attributes["error.type"] = event.error.code
    return attributes


def _happenings(job: Job) -> Iterator[tuple[str, int, Attributes]]:
    """Yield the events of a job besides its phases: name, wall time in ms, attributes."""
    for record in job.log.records:
        match record.event:
            case Tokenized(prompt_tokens=prompt_tokens):
                yield "prepared", record.at_ms, {"prompt_tokens": prompt_tokens}
            case FirstToken():
                yield "first_token", record.at_ms, {}
            case Preempted(reason=reason):
                yield "preempted", record.at_ms, {"reason": reason}
            case Resumed(attempt=attempt):
                yield "resumed", record.at_ms, {"attempt": attempt}
