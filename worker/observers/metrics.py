"""Numbers for Prometheus: jobs are folded into counts as their records come, all else is read on request.

Names, units and buckets are those that dashboards of other servers of language models use (vLLM's), under `jobwire_`.
Buckets begin lower: this worker may run a small model. A token costs an addition and a look-up; nothing is locked, and
nothing is global: each worker has a registry of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from worker import __version__
from worker.brokers.base import EngineState
from worker.brokers.phases import Phase
from worker.events import TERMINAL, Finished, FirstToken, Preempted, Record, Terminal, Token
from worker.jobs.clock import Clock
from worker.jobs.job import Job

FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
"""Buckets of the time to a job's first token."""

BETWEEN_TOKENS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
"""Buckets of the time between two tokens."""

REQUEST_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
"""Buckets of the time of a whole job and of its phases."""

TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
"""Buckets of the sizes of prompts and answers."""

LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Buckets of the delay of the event loop."""


class Histogram:
    """Counts by bucket. `bounds` are the inclusive upper ends of the buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """Return it as a metric."""
        ends = [*map(str, self.bounds), "+Inf"]
        buckets = list(zip(ends, map(float, accumulate(self.counts)), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class JobMetrics:
    """Observes all jobs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The time of a choice's latest token, in monotonic ms: by job, and by job and index from the second choice on.
        self._latest_ms: dict[Job | tuple[Job, int], float] = {}
        self.generation_tokens = self.prompt_tokens = self.cached_tokens = self.preemptions = 0
        self.finish_reasons: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.first_token = Histogram(FIRST_TOKEN_S)
        self.between_tokens = Histogram(BETWEEN_TOKENS_S)
        self.per_token, self.loop_lag = Histogram(BETWEEN_TOKENS_S), Histogram(LAG_S)
        self.whole, self.queue = Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.prefill, self.decode, self.inference = Histogram(REQUEST_S), Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.prompt_sizes, self.output_sizes = Histogram(TOKENS), Histogram(TOKENS)

    def observe_tokens(self, tokens: Sequence[tuple[Job, Record]]) -> None:
        """Count the tokens of one engine step."""
        latest_ms, gaps = self._latest_ms, self.between_tokens
        for job, record in tokens:
            token = record.event
            assert type(token) is Token
            key = (job, token.index) if token.index else job
            now_ms = job.timing.last_token or 0.0
            before_ms = latest_ms.get(key)
            latest_ms[key] = now_ms
            self.generation_tokens += len(token.ids)
            if before_ms is not None:
                seconds = (now_ms - before_ms) / 1000
                gaps.counts[bisect_left(BETWEEN_TOKENS_S, seconds)] += 1
                gaps.total += seconds

    def observe(self, job: Job, record: Record) -> None:
        """Count a record that is no token. Jobs that need no engine have ends, but no latencies."""
        event = record.event
        if isinstance(event, FirstToken):
            if not job.request.script:
                self._on_first_token(job)
        elif isinstance(event, TERMINAL):
            self._ended(job, event)
        elif isinstance(event, Preempted):
            self.preemptions += 1

    def _on_first_token(self, job: Job) -> None:
        """Count a job that has its first token: its prompt is counted once, even if an engine reads it again later."""
        timing = job.timing
        assert timing.first_token is not None
        self.first_token.add((timing.first_token - timing.created) / 1000)
        self.prompt_tokens += max(choice.prompt_tokens for choice in job.choices)
        self.cached_tokens += max(choice.cached_tokens for choice in job.choices)

    def _ended(self, job: Job, event: Terminal) -> None:
        for choice in job.choices:
            self._latest_ms.pop((job, choice.index) if choice.index else job, None)
        self.statuses[job.state] += 1
        if isinstance(event, Finished):
            self.finish_reasons[event.finish_reason] += 1
        timing, usage = job.timing, event.usage
        created, admitted, first, last = timing.created, timing.admitted, timing.first_token, timing.last_token
        if admitted is None or first is None or last is None or job.request.script:
            return
        self.whole.add((self._clock.monotonic_ms() - created) / 1000)
        self.queue.add((admitted - created) / 1000)
        self.prefill.add((first - admitted) / 1000)
        self.decode.add((last - first) / 1000)
        self.inference.add((last - admitted) / 1000)
        self.prompt_sizes.add(usage.prompt_tokens)
        self.output_sizes.add(usage.completion_tokens)
        if usage.completion_tokens > 1:
            self.per_token.add((last - first) / 1000 / (usage.completion_tokens - 1))


class Tallied(Protocol):
    """Counts that are kept where frames are made and refusals are sent."""

    frames: int
    merged: int
    resumes: int
    resets: int
    refusals: Counter[str]


class Counted(Protocol):
    """The TCP connections now, and how many were cut because they showed no key and there were too many."""

    @property
    def known(self) -> int:
        """How many have shown a key, or need none."""
        ...

    @property
    def keyless(self) -> int:
        """How many have shown no key."""
        ...

    @property
    def evicted(self) -> int:
        """How many were cut."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sources of numbers that are read on request. `open_sockets` is called while no connection changes.

    `codes` are those of all errors: a rate misses the first error of a kind if its counter was not there before, at 0.
    """

    engine: Callable[[], EngineState]
    live_jobs: Callable[[], int]
    open_sockets: Callable[[], Mapping[str, int]]
    opened_sockets: Mapping[str, int]
    room: Counted
    tally: Tallied
    codes: Iterable[str]


class Exposition(Collector):
    """All metrics of one worker, as text."""

    def __init__(self, jobs: JobMetrics, sources: Sources) -> None:
        self._jobs = jobs
        self._sources = sources
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        # Process 0 is nobody's: without an engine process there are no numbers of one.
        ProcessCollector("jobwire_engine", pid=lambda: sources.engine().pid or 0, registry=self._registry)
        ProcessCollector("jobwire_preparer", pid=lambda: sources.engine().preparer.pid or 0, registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Return nothing: the registry learns of metrics when it collects them."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family, always all of them."""
        yield from self._latencies()
        yield from self._requests()
        yield from self._engine()
        yield from self._delivery()

    def _latencies(self) -> Iterator[Metric]:
        jobs = self._jobs
        for histogram, name, text in (
            (jobs.first_token, "time_to_first_token_seconds", "From the creation of a job to its first token."),
            (jobs.between_tokens, "inter_token_latency_seconds", "Between two tokens of one choice of a job."),
            (jobs.per_token, "request_time_per_output_token_seconds", "Mean time per token after the first, by job."),
            (jobs.whole, "e2e_request_latency_seconds", "From the creation of a job to its end, if it had a token."),
            (jobs.queue, "request_queue_time_seconds", "From the creation of a job to its slot."),
            (jobs.prefill, "request_prefill_time_seconds", "From a job's slot to its first token."),
            (jobs.decode, "request_decode_time_seconds", "From a job's first token to its last."),
            (jobs.inference, "request_inference_time_seconds", "From a job's slot to its last token."),
            (jobs.prompt_sizes, "request_prompt_tokens", "Tokens of a job's prompt."),
            (jobs.output_sizes, "request_generation_tokens", "Tokens that a job has produced, over all choices."),
            (jobs.loop_lag, "event_loop_lag_seconds", "How late the gateway's event loop was, ten times a second."),
        ):
            yield histogram.family(f"jobwire_{name}", text)

    def _requests(self) -> Iterator[Metric]:
        jobs = self._jobs
        yield _counter("prompt_tokens", "Prompt tokens of jobs that have begun to answer.", jobs.prompt_tokens)
        yield _counter("generation_tokens", "Tokens produced.", jobs.generation_tokens)
        yield _counter("prefix_cache_queries", "Prompt tokens looked for in the KV cache.", jobs.prompt_tokens)
        yield _counter("prefix_cache_hits", "Prompt tokens found in the KV cache.", jobs.cached_tokens)
        yield _counter("num_preemptions", "Jobs that lost their slot for a while.", jobs.preemptions)
        reasons = {"stop": 0, "length": 0} | jobs.finish_reasons
        yield _counters("request_success", "Completed jobs, by why they ended.", "finished_reason", reasons)
        statuses = dict.fromkeys(("completed", "cancelled", "failed", "expired"), 0) | jobs.statuses
        yield _counters("jobs_ended", "Jobs that have ended, by how.", "status", statuses)
        yield _gauge("jobs_live", "Jobs that have not ended.", self._sources.live_jobs())

    def _engine(self) -> Iterator[Metric]:
        state = self._sources.engine()
        stats, info = state.stats, state.info
        live = self._sources.live_jobs()
        used = stats.kv_tokens_used / stats.kv_tokens_total if stats and stats.kv_tokens_total else 0.0
        yield _gauge("num_requests_running", "Sequences in the batch.", stats.running if stats else 0)
        yield _gauge("num_requests_waiting", "Sequences that wait for a slot.", stats.waiting if stats else live)
        yield _gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", used)
        yield _gauge("engine_slots", "Sequences that may share a step.", info.slots if info else 0)
        yield _gauge("engine_step_seconds", "Time of a step, lately.", stats.step_ms / 1000 if stats else 0.0)
        gap_s = stats.step_gap_ms / 1000 if stats else 0.0
        yield _gauge("engine_step_gap_seconds", "Longest time between two steps, in the last seconds.", gap_s)
        yield _counter("engine_restarts", "Deaths of engines that were ready.", state.restarts)
        preparer = state.preparer
        yield _counter("preparer_restarts", "Deaths of preparers that were loaded.", preparer.restarts)
        yield _counter("preparer_hand_deaths", "Processes that read prompts and were replaced.", preparer.hand_deaths)
        yield _gauge("preparer_memory_bytes", "Memory of preparer and hands together.", preparer.memory_bytes or 0)
        phases = {phase: int(phase == state.phase) for phase in get_args(Phase)}
        yield _gauges("engine_state", "1 for where the engine stands, 0 for the others.", "state", phases)
        build = GaugeMetricFamily(
            "jobwire_build_info", "What runs here; always 1.", labels=("version", "engine", "model", "device")
        )
        facts = (info.engine, info.model, info.device) if info else ("", "", "")
        build.add_metric((__version__, *facts), 1)
        yield build

    def _delivery(self) -> Iterator[Metric]:
        tally, sources = self._sources.tally, self._sources
        kinds = dict.fromkeys(("websocket", "sse", "legacy", "loading"), 0)
        room = {"known": sources.room.known, "keyless": sources.room.keyless}
        yield _gauges(
            "connections_open", "TCP connections, by whether they have shown a key or need none.", "kind", room
        )
        evicted = sources.room.evicted
        yield _counter("connections_evicted", "Connections without a key that were cut for new ones.", evicted)
        yield _gauges(
            "sockets_open", "Open WebSockets and event streams.", "kind", kinds | dict(sources.open_sockets())
        )
        yield _counters(
            "sockets_opened", "WebSockets and event streams ever opened.", "kind", kinds | dict(sources.opened_sockets)
        )
        yield _counter("frames", "Frames of jobs handed to connections.", tally.frames)
        yield _counter("coalesced_events", "Events that came along in a frame with others.", tally.merged)
        yield _counter("resumes", "Readers that began after a cursor.", tally.resumes)
        yield _counter("resets", "Readers whose cursor was of a log that is gone.", tally.resets)
        codes = dict.fromkeys(sources.codes, 0)
        yield _counters("refusals", "Errors sent to clients, by code.", "code", codes | tally.refusals)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"jobwire_{name}", text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    return _labelled(CounterMetricFamily(f"jobwire_{name}", text, labels=[label]), values)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"jobwire_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    return _labelled(GaugeMetricFamily(f"jobwire_{name}", text, labels=[label]), values)


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, int]) -> Metric:
    for value, count in values.items():
        family.add_metric([value], count)
    return family
