"""Bodies of HTTP answers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tests.jobs.scripted import INFO, READY, STATS, Stage
from tests.protocol.wire import ID, OTHER
from worker.brokers.base import EngineState
from worker.engines.base import LoadProgress
from worker.errors import ModelError, QueueFull
from worker.protocol import views
from worker.protocol.frames import encode

STREAM = f"/v1/jobs/{ID}/stream?ticket=t"

BROKEN = EngineState(phase="failed", error=ModelError("The model file is broken.").problem())


def body(data: bytes) -> Any:
    """Return an answer's JSON."""
    return json.loads(data)


# ---- jobs ------------------------------------------------------------------------------------------------------------


def test_a_created_job_says_where_to_follow_it() -> None:
    stage = Stage()
    job = stage.create(ID)
    expected = {
        "job_id": ID,
        "sse_url": STREAM,
        "ws_url": "/v1/ws",
        "state": "queued",
        "priority": 5,
        "queue": {"position": 1},
    }
    assert body(views.created(job, STREAM)) == expected
    stage.place(job, 4, 1200)
    assert body(views.created(job, STREAM))["queue"] == {"position": 4, "eta_ms": 1200}
    stage.start(job)
    assert body(views.created(job, STREAM)) == {
        name: value for name, value in {**expected, "state": "running"}.items() if name != "queue"
    }


def test_a_cancel_answers_the_same_every_time() -> None:
    stage = Stage()
    job = stage.create(ID)
    stage.jobs.cancel("ann", ID)
    assert body(views.cancelled(job)) == {"job_id": ID, "status": "cancelled"}


def test_the_list_has_what_one_needs_to_choose() -> None:
    stage = Stage()
    stage.run(stage.create(ID, prompt="Hi", priority=7), "a")
    stage.create(OTHER)
    waiting, ended = body(views.job_list(stage.jobs.list("ann")))["jobs"]
    assert (ended["job_id"], ended["state"], ended["status"], ended["priority"]) == (ID, "ended", "completed", 7)
    assert ended["created_at"] == "2025-10-30T15:26:41Z"
    assert (waiting["job_id"], waiting["state"], waiting["queue"]) == (OTHER, "queued", {"position": 1})
    assert "status" not in waiting
    assert body(views.job_list([])) == {"jobs": []}


def test_a_job_in_detail_has_its_text_and_the_cursor_to_go_on_from() -> None:
    stage = Stage()
    job = stage.create(ID)
    stage.start(job, prompt_tokens=5)
    stage.tokens(job, "Hel", "lo")
    stage.clock.advance(70)
    detail = body(views.job_detail(job, stage.clock.monotonic_ms(), STREAM))
    assert (detail["text"], detail["cursor"], detail["state"]) == ("Hello", job.log.cursor(job.log.tail), "running")
    assert (detail["usage"]["total_ms"], detail["usage"]["completion_tokens"]) == (70, 2)
    assert not {"texts", "status", "error"} & set(detail)
    stage.finish(job)
    stage.clock.advance(1000)
    ended = body(views.job_detail(job, stage.clock.monotonic_ms(), STREAM))
    assert (ended["status"], ended["usage"]["total_ms"]) == ("completed", 70)


def test_several_choices_are_all_there() -> None:
    stage = Stage()
    job = stage.create(ID, prompt="Hi", n=2)
    stage.start(job)
    stage.tokens(job, "a", index=0)
    stage.tokens(job, "b", index=1)
    detail = body(views.job_detail(job, 0, STREAM))
    assert (detail["text"], detail["texts"]) == ("a", ["a", "b"])


def test_a_failed_job_says_why() -> None:
    stage = Stage()
    job = stage.create(ID)
    stage.refuse(job, "It cannot run.")
    assert body(views.job_detail(job, 0, STREAM))["error"]["detail"] == "It cannot run."


def test_a_problem_is_the_rfc_9457_object() -> None:
    problem = QueueFull("Full.", retry_after_ms=10).problem()
    assert body(encode(problem)) == {
        "type": "urn:jobwire:error:queue_full",
        "title": "Queue full",
        "status": 429,
        "detail": "Full.",
        "code": "queue_full",
        "retriable": True,
        "retry_after_ms": 10,
    }


# ---- the worker ------------------------------------------------------------------------------------------------------


def test_health_has_facts_about_the_model() -> None:
    status, data = views.health(msgspec.structs.replace(READY, stats=STATS, restarts=2))
    facts = body(data)
    assert (status, facts["status"], facts["engine_phase"]) == (200, "healthy", "ready")
    assert (facts["model"], facts["engine"], facts["device"]) == (INFO.model, INFO.engine, INFO.device)
    assert (facts["context_tokens"], facts["slots_total"], facts["parameters"]) == (1024, 4, 1000)
    assert (facts["running"], facts["waiting"], facts["restarts"]) == (1, 2, 2)


@pytest.mark.parametrize("phase", ["loading", "restarting"])
def test_a_worker_that_loads_is_healthy_but_not_ready(phase: Any) -> None:
    state = EngineState(phase=phase)
    status, data = views.health(state)
    assert (status, body(data)["status"]) == (200, "healthy")
    for prefix in ("", "/llm"):
        status, data = views.ready(state, prefix=prefix)
        url = f"{prefix}/v1/loading/progress"
        assert (status, body(data)) == (
            503,
            {"ready": False, "state": phase, "model_loaded": False, "progress_url": url},
        )


def test_a_worker_without_a_usable_model_says_why() -> None:
    status, data = views.health(BROKEN)
    assert (status, body(data)["status"], body(data)["message"]) == (503, "unhealthy", "The model file is broken.")
    status, data = views.ready(BROKEN)
    ready = body(data)
    assert (status, ready["ready"], ready["state"], ready["error"]["code"]) == (
        503,
        False,
        "failed",
        "model_unavailable",
    )
    assert "progress_url" not in ready


def test_strangers_are_not_told_why_there_is_no_model() -> None:
    """The reason may name files."""
    answers = (
        views.health(BROKEN, known=False)[1],
        views.ready(BROKEN, known=False)[1],
        views.loading_item(BROKEN, known=False)[0],
    )
    for data in answers:
        assert b"broken" not in data
        assert views.UNSAID.encode() in data
    assert body(views.health(READY, known=False)[1]) == body(views.health(READY)[1])


def test_ready_is_idle_or_busy_or_draining() -> None:
    assert views.ready(READY) == (200, b'{"ready":true,"state":"idle","model_loaded":true}')
    assert body(views.ready(msgspec.structs.replace(READY, stats=STATS))[1])["state"] == "busy"
    status, data = views.ready(READY, draining=True)
    assert (status, body(data)) == (503, {"ready": False, "state": "draining"})


@pytest.mark.parametrize(
    ("state", "item", "last"),
    [
        (
            EngineState(phase="loading", progress=LoadProgress("loading_to_vram", 12, 32, 2048 << 20)),
            {"stage": "loading_to_vram", "layers_loaded": 12, "layers_total": 32, "vram_mb": 2048},
            False,
        ),
        (EngineState(phase="loading"), {"stage": "loading"}, False),
        (EngineState(phase="restarting"), {"stage": "restarting"}, False),
        (READY, {"stage": "ready"}, True),
        (EngineState(phase="closed"), {"stage": "closed"}, True),
        (
            BROKEN,
            {"stage": "failed", "error": body(encode(ModelError("The model file is broken.").problem()))},
            True,
        ),
    ],
)
def test_loading_is_told_step_by_step(state: EngineState, item: dict[str, Any], last: bool) -> None:
    data, done = views.loading_item(state)
    assert (body(data), done) == (item, last)


def test_stats_are_the_numbers_of_now() -> None:
    open_now = {"sockets": 4, "connections_known": 5, "connections_keyless": 6}
    busy = body(
        views.stats(msgspec.structs.replace(READY, stats=STATS, restarts=2), live=3, uptime_s=1.23456, **open_now)
    )
    assert {name: busy[name] for name in open_now} == open_now
    assert (busy["engine_phase"], busy["jobs_live"], busy["sockets"], busy["uptime_s"]) == ("ready", 3, 4, 1.235)
    assert (busy["running"], busy["waiting"], busy["restarts"]) == (STATS.running, STATS.waiting, 2)
    assert (busy["step_ms"], busy["decode_tokens_per_s"]) == (STATS.step_ms, STATS.decode_tokens_per_s)
    idle = msgspec.structs.replace(STATS, running=0)
    assert busy["step_gap_ms"] == STATS.step_gap_ms
    rest = body(views.stats(msgspec.structs.replace(READY, stats=idle), live=0, uptime_s=0, **open_now))
    assert (rest["step_ms"], rest["step_gap_ms"]) == (0, 0)


def test_without_an_engine_all_jobs_wait() -> None:
    none = body(
        views.stats(
            EngineState(phase="loading"), live=3, sockets=0, connections_known=0, connections_keyless=0, uptime_s=0
        )
    )
    assert (none["waiting"], none["running"], none["slots_total"], none["kv_tokens_total"]) == (3, 0, 0, 0)
