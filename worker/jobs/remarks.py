"""The service's own remarks on a job, for people: notes in its log that change no state. Pure."""

from __future__ import annotations

from worker.events import Note, Usage


def restarted(reason: str) -> Note:
    """Return the remark on an engine that died while it had the job."""
    human = f"{reason[:1].upper()}{reason[1:]}; starting it again"
    return Note(actor="worker", action="engine_restarted", human=human, level="warn")


def preparing() -> Note:
    """Return the remark on a job whose prompt takes long to read."""
    return Note(actor="preparer", action="preparing", human="The prompt is still being read")


def completed(usage: Usage) -> Note:
    """Return the remark on a completed job."""
    human = f"Done: {usage.completion_tokens} tokens in {usage.total_ms / 1000:.1f} s"
    if usage.tokens_per_s is not None:
        human += f", {usage.tokens_per_s:.0f} tokens/s"
    return Note(
        actor="worker",
        action="completed",
        human=human,
        duration_ms=usage.total_ms,
        tokens_in=usage.prompt_tokens,
        tokens_out=usage.completion_tokens,
    )
