"""A stage whose jobs are watched by an observer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.jobs.scripted import ManualClock, Stage
from worker.jobs.news import Observer


def watched(make: Callable[[ManualClock], Observer], **settings: Any) -> Stage:
    """Return a stage with the observer that `make` returns for its clock. Nobody observes its tokens."""
    stage = Stage(**settings)
    stage.jobs._news.observers, stage.jobs._news.token_observers = (make(stage.clock),), ()
    return stage
