"""The bounds of requests are those of the settings."""

from __future__ import annotations

from worker.config import Settings
from worker.operations.base import Limits


def test_limits_are_the_settings_of_the_same_names() -> None:
    settings = Settings()
    limits = Limits.of(settings)
    for name in Limits.__struct_fields__:
        assert getattr(limits, name) == getattr(settings, name)
