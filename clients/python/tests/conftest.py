"""Lets the tests import their helpers and, without an installation, the client. Holds the fixture for time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

from clock import Clock  # noqa: E402 - found by the line above


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The monotonic clock of this process, which the test can move forward."""
    return Clock(monkeypatch)
