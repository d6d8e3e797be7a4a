"""Turns what happens to a job into sentences for people: the narration channel, derived here and nowhere else."""

from __future__ import annotations

from typing import Any, TypeAlias

from worker.events import Admitted, FirstToken, Note, Preempted, Progress, Queued, Record, Resumed

Fields: TypeAlias = dict[str, Any]
"""The fields of a narration frame. What is absent is not in the mapping; there is never a None."""

PHASES = {"completed": "done", "engine_restarted": "recovery"}
"""The phase of a job after a note of this action. Other notes are just `note`s."""

CUTE = {
    "admitted": "Reading your prompt with both eyes.",
    "first_token": "And it speaks!",
    "preempted": "Holding that thought.",
    "engine_restarted": "The engine tripped. Up again in a moment.",
    "resumed": "Now, where were we?",
    "completed": "The end. Thank you for reading.",
}


def narrate(job_id: str, record: Record) -> Fields | None:
    """Return the narration of a record of job `job_id`. Tokens and terminal events have no sentence: None."""
    fields = _describe(record)
    if fields is None:
        return None
    cute = CUTE.get(fields["action"])
    return {
        **fields,
        **({} if cute is None else {"cute": cute}),
        "target": job_id,
        "emitted_by": "jobwire",
        "emitted_at_ms": record.at_ms,
    }


def _describe(record: Record) -> Fields | None:
    match record.event:
        case Queued() as event:
            return _queued(event)
        case Admitted() as event:
            return _admitted(event)
        case Progress(done=done, total=total):
            share = done / total if total else 1.0
            fields = _say("engine", "prefill", f"Prefill {share:.0%}".replace("%", " %"), "prefill")
            return {**fields, "progress": round(share, 4), "metrics": {"prefilled_tokens": done, "total_tokens": total}}
        case FirstToken(wait_ms=wait_ms):
            fields = _say("engine", "first_token", f"First token after {wait_ms} ms", "decode")
            return {**fields, "duration_ms": wait_ms}
        case Preempted(reason=reason):
            return {**_say("scheduler", "preempted", f"Paused: {reason}", "queued"), "level": "warn"}
        case Resumed(attempt=attempt):
            human = f"The job goes on where it was, in attempt {attempt}"
            return {**_say("worker", "resumed", human, "queued"), "metrics": {"attempt": attempt}}
        case Note() as event:
            return _note(event)
        case _:
            return None


def _say(actor: str, action: str, human: str, phase: str) -> Fields:
    return {"actor": actor, "action": action, "human": human, "phase": phase}


def _queued(event: Queued) -> Fields:
    ahead = event.position - 1
    human = "Next in line" if ahead <= 0 else f"{ahead} job{'s' if ahead > 1 else ''} ahead"
    queue = {"position": event.position}
    if event.eta_ms is not None:
        human += f", about {_duration(event.eta_ms)}"
        queue["eta_ms"] = event.eta_ms
    return {**_say("scheduler", "queued", human, "queued"), "queue": queue, "queue_position": event.position}


def _admitted(event: Admitted) -> Fields:
    tokens = f"{event.prompt_tokens} token{'' if event.prompt_tokens == 1 else 's'}"
    human = f"Reading a prompt of {tokens}" if event.prompt_tokens else "It is this job's turn"
    if event.cached_tokens:
        human += f", {event.cached_tokens} of them from the cache"
    metrics = {"prompt_tokens": event.prompt_tokens, "cached_tokens": event.cached_tokens}
    return {**_say("scheduler", "admitted", human, "prefill"), "tokens_in": event.prompt_tokens, "metrics": metrics}


def _note(event: Note) -> Fields:
    fields = _say(event.actor, event.action, event.human, PHASES.get(event.action, "note"))
    if event.level != "info":
        fields["level"] = event.level
    for name in ("duration_ms", "tokens_in", "tokens_out"):
        value = getattr(event, name)
        if value is not None:
            fields[name] = value
    return fields


def _duration(ms: int) -> str:
    """Return a duration for people, rounded up to what one would say."""
    seconds = -(-ms // 1000)
    return f"{seconds} s" if seconds < 120 else f"{-(-seconds // 60)} min"
