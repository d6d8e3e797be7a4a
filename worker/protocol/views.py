"""Bodies of HTTP answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from worker import __version__
from worker.brokers.base import EngineState
from worker.errors import Problem
from worker.events import Terminal, Usage
from worker.jobs.job import Job
from worker.protocol.frames import Ignored, InForce, QueuePlace, State, encode
from worker.protocol.paging import FIRST, Page
from worker.protocol.reading import wire_queue, wire_state

LOADING_URL = "/v1/loading/progress"
WS_URL = "/v1/ws"

UNSAID = "The model could not be loaded. Ask with a key for the reason, or look into the worker's log."


class Created(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to POST /v1/jobs."""

    job_id: Annotated[str, Meta(description="The job.")]
    sse_url: Annotated[str, Meta(description="Where it can be read as server-sent events.")]
    ws_url: Annotated[str, Meta(description="Where WebSockets are accepted.")]
    state: Annotated[State, Meta(description="The job's state.")]
    priority: InForce | None = None
    queue: Annotated[QueuePlace | None, Meta(description="Its place in the queue, while it waits.")] = None
    ignored: Ignored = ()


class JobItem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A job in a list. `created_at` is RFC 3339."""

    job_id: Annotated[str, Meta(description="The job.")]
    state: Annotated[State, Meta(description="Its state.")]
    operation: Annotated[str, Meta(description="What it does.")]
    priority: Annotated[int, Meta(description="Higher goes first.")]
    created_at: Annotated[datetime, Meta(tz=True, description="When it was created.")]
    queue: Annotated[QueuePlace | None, Meta(description="Its place in the queue, while it waits.")] = None
    status: Annotated[str | None, Meta(description="How it ended: completed, cancelled, failed or expired.")] = None
    principal: Annotated[str | None, Meta(description="Its owner, where an admin lists all.")] = None


class JobList(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to GET /v1/jobs: a page, newest first."""

    jobs: Annotated[tuple[JobItem, ...], Meta(description="Queued, running, and ended ones that are still kept.")]
    next: Annotated[str | None, Meta(description="The `after` of the next page; absent on the last.")] = None


class JobDetail(JobItem, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to GET /v1/jobs/{id}. A stream after `cursor` continues `text`; several choices are in `texts`."""

    text: Annotated[str, Meta(description="The text so far, of the first choice.")]
    cursor: Annotated[str, Meta(description="The `after` of a stream that continues after `text`.")]
    usage: Annotated[Usage, Meta(description="What it has consumed so far.")]
    sse_url: Annotated[str, Meta(description="Where it can be read as server-sent events.")]
    texts: Annotated[tuple[str, ...], Meta(description="With several choices: the text of each.")] = ()
    error: Annotated[Problem | None, Meta(description="Why it failed or expired.")] = None


class CancelledView(msgspec.Struct, frozen=True):
    """The answer to DELETE /v1/jobs/{id}."""

    job_id: Annotated[str, Meta(description="The job.")]
    status: Annotated[str, Meta(description="cancelled, also for a job that had ended before.")] = "cancelled"


class Health(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to GET /health: whether the worker works, and facts about it."""

    # Required on the wire, so it has no default that could be omitted.
    status: Annotated[str, Meta(description="healthy, or unhealthy when there is no usable model.")]
    version: Annotated[str, Meta(description="Version of the worker.")]
    engine_phase: Annotated[str, Meta(description="The phase of the engine process.")]
    message: Annotated[str | None, Meta(description="What is wrong.")] = None
    model: Annotated[str | None, Meta(description="The model.")] = None
    engine: Annotated[str | None, Meta(description="The engine.")] = None
    device: Annotated[str | None, Meta(description="The device.")] = None
    context_tokens: Annotated[int | None, Meta(description="Most tokens of a sequence, prompt and output.")] = None
    parameters: Annotated[int | None, Meta(description="Size of the model.")] = None
    weights_bytes: Annotated[int | None, Meta(description="Size of its weights in memory.")] = None
    slots_total: Annotated[int | None, Meta(description="Sequences that may share a step.")] = None
    deterministic: Annotated[
        bool | None, Meta(description="Whether the same seed gives the same text, whatever runs beside it.")
    ] = None
    running: Annotated[int | None, Meta(description="Sequences that run now.")] = None
    waiting: Annotated[int | None, Meta(description="Jobs that wait.")] = None
    restarts: Annotated[int | None, Meta(description="How often the engine was restarted.")] = None
    preparer_restarts: Annotated[int | None, Meta(description="How often the reader of prompts was restarted.")] = None
    preparer_hand_deaths: Annotated[
        int | None, Meta(description="Processes that were replaced, because a prompt or form ended them.")
    ] = None
    preparer_memory_bytes: Annotated[int | None, Meta(description="Memory of the processes that read prompts.")] = None
    details: Annotated[dict[str, str] | None, Meta(description="More of the engine, by name.")] = None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to GET /v1/stats: the worker's numbers now. Rates are means over the last seconds."""

    engine_phase: Annotated[str, Meta(description="The phase of the engine process.")]
    jobs_live: Annotated[int, Meta(description="Jobs that have not ended.")]
    running: Annotated[int, Meta(description="Sequences in the batch.")]
    waiting: Annotated[int, Meta(description="Sequences that wait for a slot.")]
    slots_total: Annotated[int, Meta(description="Sequences that may share a step.")]
    kv_tokens_used: Annotated[int, Meta(description="Tokens of KV cache in use.")]
    kv_tokens_total: Annotated[int, Meta(description="Tokens of KV cache in all.")]
    step_ms: Annotated[float, Meta(description="Time of a step; 0 when nothing runs.")]
    step_gap_ms: Annotated[float, Meta(description="Longest time between two steps, lately; 0 when nothing runs.")]
    decode_tokens_per_s: Annotated[float, Meta(description="Tokens produced per second; 0 when nothing runs.")]
    prefill_tokens_per_s: Annotated[float, Meta(description="Prompt tokens read per second; 0 when nothing runs.")]
    sockets: Annotated[int, Meta(description="Open WebSockets and event streams.")]
    connections_known: Annotated[int, Meta(description="TCP connections that have shown a key, or need none.")]
    connections_keyless: Annotated[int, Meta(description="TCP connections that have shown no key.")]
    restarts: Annotated[int, Meta(description="How often the engine was restarted.")]
    uptime_s: Annotated[float, Meta(description="Since the worker was started.")]


class Ready(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The answer to GET /v1/ready."""

    ready: Annotated[bool, Meta(description="Whether a new job would start without waiting for a model.")]
    state: Annotated[str, Meta(description="idle, busy or draining; else the phase of the engine.")]
    model_loaded: Annotated[bool | None, Meta(description="Whether the model is loaded.")] = None
    progress_url: Annotated[str | None, Meta(description="Where its loading can be watched.")] = None
    error: Annotated[Problem | None, Meta(description="Why there is no model.")] = None


class LoadingItem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One event of GET /v1/loading/progress."""

    stage: Annotated[str, Meta(description="The current step; ready or failed at the end.")]
    layers_loaded: Annotated[int | None, Meta(description="Parts that are done.")] = None
    layers_total: Annotated[int | None, Meta(description="Parts in all.")] = None
    vram_mb: Annotated[int | None, Meta(description="Memory filled, in MiB.")] = None
    error: Annotated[Problem | None, Meta(description="Why it failed.")] = None


def created(job: Job, sse_url: str, ignored: Sequence[str] = (), ws_url: str = WS_URL) -> bytes:
    """Return the answer to the creation of a job, which can be read at `sse_url` and at `ws_url`."""
    return encode(
        Created(
            job_id=job.id,
            sse_url=sse_url,
            ws_url=ws_url,
            state=wire_state(job),
            priority=job.priority,
            queue=wire_queue(job),
            ignored=tuple(ignored),
        )
    )


def cancelled(job: Job) -> bytes:
    """Return the answer to a cancel, which is the same for a job that has ended already."""
    return encode(CancelledView(job.id))


def job_list(found: Sequence[Job], page: Page = FIRST, *, everybodys: bool = False) -> bytes:
    """Return a page of jobs; with their owners if they are `everybodys`.

    `found` is the page and, if there is more, one job of the next.
    """
    jobs = found[: page.limit]
    return encode(
        JobList(
            tuple(JobItem(**_item(job), principal=job.owner_name if everybodys else None) for job in jobs),
            str(jobs[-1].number) if len(found) > page.limit else None,
        )
    )


def job_detail(job: Job, now_ms: float, sse_url: str) -> bytes:
    """Return a job with its text so far, the cursor to go on from, and its stream. `now_ms` is monotonic."""
    last = job.log.records[-1].event if job.ended else None
    texts = tuple(job.text(choice.index) for choice in job.choices)
    return encode(
        JobDetail(
            **_item(job),
            text=texts[0],
            texts=texts if len(texts) > 1 else (),
            cursor=job.log.cursor(job.log.tail),
            usage=last.usage if isinstance(last, Terminal) else job.usage(now_ms),
            sse_url=sse_url,
            error=getattr(last, "error", None),
        )
    )


def _item(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "state": wire_state(job),
        "operation": job.request.operation,
        "priority": job.priority,
        "created_at": datetime.fromtimestamp(job.created_at_ms / 1000, UTC),
        "queue": wire_queue(job),
        "status": job.state if job.ended else None,
    }


def _error(state: EngineState, *, known: bool) -> Problem | None:
    """Return why there is no model. What went wrong may name files, which is for those alone who are `known`."""
    if state.error is None or known:
        return state.error
    return msgspec.structs.replace(state.error, detail=UNSAID)


def health(state: EngineState, *, known: bool = True) -> tuple[HTTPStatus, bytes]:
    """Return status and body: healthy as long as the worker serves or will; without a usable model it is not."""
    info, stats, failed = state.info, state.stats, state.phase == "failed"
    error = _error(state, known=known) if failed else None
    body = Health(
        status="unhealthy" if failed else "healthy",
        version=__version__,
        engine_phase=state.phase,
        message=error.detail if error is not None else None,
        model=info.model if info else None,
        engine=info.engine if info else None,
        device=info.device if info else None,
        context_tokens=info.context_tokens if info else None,
        parameters=info.parameters if info else None,
        weights_bytes=info.weights_bytes if info else None,
        slots_total=info.slots if info else None,
        deterministic=info.deterministic if info else None,
        running=stats.running if stats else None,
        waiting=stats.waiting if stats else None,
        restarts=state.restarts,
        preparer_restarts=state.preparer.restarts,
        preparer_hand_deaths=state.preparer.hand_deaths,
        preparer_memory_bytes=state.preparer.memory_bytes,
        details=(info.details or None) if info else None,
    )
    return HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK, encode(body)


def stats(
    state: EngineState, *, live: int, sockets: int, connections_known: int, connections_keyless: int, uptime_s: float
) -> bytes:
    """Return the worker's numbers: its engine, its live jobs, its open connections."""
    info, now = state.info, state.stats
    busy = now if now is not None and now.running else None
    body = Stats(
        engine_phase=state.phase,
        jobs_live=live,
        running=now.running if now else 0,
        # Without an engine all jobs wait.
        waiting=now.waiting if now else live,
        slots_total=info.slots if info else 0,
        kv_tokens_used=now.kv_tokens_used if now else 0,
        kv_tokens_total=now.kv_tokens_total if now else 0,
        step_ms=round(busy.step_ms, 3) if busy else 0.0,
        step_gap_ms=round(busy.step_gap_ms, 3) if busy else 0.0,
        decode_tokens_per_s=round(busy.decode_tokens_per_s, 1) if busy else 0.0,
        prefill_tokens_per_s=round(busy.prefill_tokens_per_s, 1) if busy else 0.0,
        sockets=sockets,
        connections_known=connections_known,
        connections_keyless=connections_keyless,
        restarts=state.restarts,
        uptime_s=round(uptime_s, 3),
    )
    return encode(body)


def ready(
    state: EngineState, *, draining: bool = False, known: bool = True, prefix: str = ""
) -> tuple[HTTPStatus, bytes]:
    """Return status and body: ready when a new job would start without waiting for a model.

    `prefix` is the path of a proxy that the caller came through.
    """
    if draining:
        return HTTPStatus.SERVICE_UNAVAILABLE, encode(Ready(ready=False, state="draining"))
    if state.phase == "ready":
        busy = state.stats is not None and state.stats.running > 0
        return HTTPStatus.OK, encode(Ready(ready=True, state="busy" if busy else "idle", model_loaded=True))
    body = Ready(
        ready=False,
        state=state.phase,
        model_loaded=False,
        progress_url=prefix + LOADING_URL if state.phase in ("loading", "restarting") else None,
        error=_error(state, known=known),
    )
    return HTTPStatus.SERVICE_UNAVAILABLE, encode(body)


def loading_item(state: EngineState, *, known: bool = True) -> tuple[bytes, bool]:
    """Return the event of the current state of loading, and whether it is the last."""
    if state.phase == "ready":
        return encode(LoadingItem(stage="ready")), True
    if state.phase in ("failed", "closed"):
        return encode(LoadingItem(stage=state.phase, error=_error(state, known=known))), True
    progress = state.progress
    if progress is None:
        return encode(LoadingItem(stage=state.phase)), False
    item = LoadingItem(
        stage=progress.stage,
        layers_loaded=progress.done,
        layers_total=progress.total,
        vram_mb=progress.bytes_loaded >> 20,
    )
    return encode(item), False
