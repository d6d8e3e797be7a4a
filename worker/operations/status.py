"""The operation "status": the worker's state, as a job that needs no engine and ends at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from worker.brokers.base import EngineState
from worker.events import Admitted, Note, Token
from worker.operations.base import JobRequest, Limits, NoParams, scripted
from worker.operations.fields import WrongFields


class WorkerStatus(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The worker's state, as the job's text in JSON."""

    state: str
    engine: str | None = None
    model: str | None = None
    device: str | None = None
    slots: int | None = None
    running: int | None = None
    waiting: int | None = None
    tokens_per_s: float | None = None
    error: str | None = None


class Status:
    """Reports the state of the engine, which `state` returns."""

    name = "status"
    params = NoParams
    one_of = ()

    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._state = state

    def parse(
        self,
        body: Mapping[str, object],
        limits: Limits,  # noqa: ARG002 - the port's signature
        wrong: WrongFields,
    ) -> JobRequest:
        """Accept any body: there is nothing to choose."""
        wrong.refuse()
        status = _status(self._state())
        script = (
            Admitted(prompt_tokens=0),
            Note(actor="worker", action="status", human=_sentence(status)),
            Token(msgspec.json.encode(status).decode()),
        )
        return scripted(self.name, body, script)


def _status(state: EngineState) -> WorkerStatus:
    info, stats = state.info, state.stats
    return WorkerStatus(
        state=state.phase,
        engine=info.engine if info else None,
        model=info.model if info else None,
        device=info.device if info else None,
        slots=info.slots if info else None,
        running=stats.running if stats else None,
        waiting=stats.waiting if stats else None,
        tokens_per_s=round(stats.decode_tokens_per_s, 2) if stats else None,
        error=state.error.detail if state.error else None,
    )


def _sentence(status: WorkerStatus) -> str:
    parts = [f"The engine is {status.state}"]
    if status.model is not None:
        parts.append(f"{status.model} on {status.engine}")
    if status.running is not None:
        parts.append(f"{status.running} running, {status.waiting} waiting")
    if status.error is not None:
        parts.append(status.error.removesuffix("."))
    return "; ".join(parts)
