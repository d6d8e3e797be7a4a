"""Turns what happens to a job into sentences for people: the narration channel, derived here and nowhere else."""

from __future__ import annotations

import msgspec

from worker.events import Admitted, FirstToken, Note, Preempted, Progress, Queued, Record, Resumed, Tokenized
from worker.jobs.narration import Narration

PHASES = {"preparing": "queued", "completed": "done", "engine_restarted": "recovery"}
"""The phase of a job after a note of this action. Other notes have the phase `note`."""

CUTE = {
    "admitted": "Reading your prompt with both eyes.",
    "first_token": "And it speaks!",
    "preempted": "Holding that thought.",
    "engine_restarted": "The engine tripped. Up again in a moment.",
    "resumed": "Now, where were we?",
    "completed": "The end. Thank you for reading.",
}


def narrate(record: Record) -> Narration | None:
    """Return the narration of a record. Tokens and terminal events have no sentence: None."""
    narration = _describe(record)
    cute = CUTE.get(narration.action) if narration is not None else None
    return narration if narration is None or cute is None else msgspec.structs.replace(narration, cute=cute)


def _describe(record: Record) -> Narration | None:
    match record.event:
        case Queued() as event:
            return _queued(event)
        case Tokenized(prompt_tokens=tokens):
            return Narration("preparer", "prepared", f"The prompt has {_tokens(tokens)}", "queued", tokens_in=tokens)
        case Admitted() as event:
            return _admitted(event)
        case Progress() as event:
            return _progress(event)
        case FirstToken(wait_ms=wait_ms):
            return Narration("engine", "first_token", f"First token after {wait_ms} ms", "decode", duration_ms=wait_ms)
        case Preempted(reason=reason):
            return Narration("scheduler", "preempted", f"Paused: {reason}", "queued", level="warn")
        case Resumed(attempt=attempt):
            human = f"The job continues where it stopped, in attempt {attempt}"
            return Narration("worker", "resumed", human, "queued", metrics={"attempt": attempt})
        case Note() as event:
            return _note(event)
        case _:
            return None


def _queued(event: Queued) -> Narration:
    ahead = event.position - 1
    human = "Next in line" if ahead <= 0 else f"{ahead} job{'s' if ahead > 1 else ''} ahead"
    if event.eta_ms is not None:
        human += f", about {_duration(event.eta_ms)}"
    return Narration("scheduler", "queued", human, "queued", queue_position=event.position, eta_ms=event.eta_ms)


def _admitted(event: Admitted) -> Narration:
    human = f"Reading a prompt of {_tokens(event.prompt_tokens)}" if event.prompt_tokens else "It is this job's turn"
    if event.cached_tokens:
        human += f", {event.cached_tokens} of them from the cache"
    metrics = {"prompt_tokens": event.prompt_tokens, "cached_tokens": event.cached_tokens}
    return Narration("scheduler", "admitted", human, "prefill", tokens_in=event.prompt_tokens, metrics=metrics)


def _progress(event: Progress) -> Narration:
    share = event.done / event.total if event.total else 1.0
    human = f"Prefill {share:.0%}"
    metrics = {"prefilled_tokens": event.done, "total_tokens": event.total}
    return Narration("engine", "prefill", human, "prefill", progress=round(share, 4), metrics=metrics)


def _note(event: Note) -> Narration:
    return Narration(
        event.actor,
        event.action,
        event.human,
        PHASES.get(event.action, "note"),
        level=None if event.level == "info" else event.level,
        duration_ms=event.duration_ms,
        tokens_in=event.tokens_in,
        tokens_out=event.tokens_out,
    )


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _duration(ms: int) -> str:
    """Return a duration for people, rounded up: in seconds below two minutes, else in minutes."""
    seconds = -(-ms // 1000)
    return f"{seconds} s" if seconds < 120 else f"{-(-seconds // 60)} min"
